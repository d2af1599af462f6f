"""Its place makes this folder importable for the tests."""
