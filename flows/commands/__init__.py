"""What the command line does beyond what flows and stages do already."""
