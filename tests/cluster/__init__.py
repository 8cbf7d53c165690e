"""The scripts that create the test cluster."""
