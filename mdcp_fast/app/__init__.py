"""What people start: the command line, the demo, named networks and data."""
