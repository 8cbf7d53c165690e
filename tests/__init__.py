"""Tests that need no cluster; each folder holds those of one part of the repository."""
