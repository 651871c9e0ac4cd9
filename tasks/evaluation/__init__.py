"""The test results: scores with intervals, what ships, tables, settings compared, all in words."""
