"""Tests in a Kubernetes cluster; README.md describes how to write one."""
