"""The one adapter to DVC: its graph, one stage as a process, isolated runs."""
