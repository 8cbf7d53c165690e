"""What all tests share: Hypothesis draws the same examples in each run.

So a change is judged by what it changes. `make test ARGS=--hypothesis-profile=default` looks for
new ones; what it finds becomes a test of its own.
"""

from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.load_profile("same")
