"""What all tests share: Hypothesis draws the same examples in each run, however long it takes.

So a change is judged by what it changes. `make test ARGS=--hypothesis-profile=default` looks for
new ones; what it finds becomes a test of its own.
"""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same")
