"""What `make release` builds, signs and pushes; RELEASE.md describes it."""
