"""What `make sync` writes: texts that follow from the code's tables, and the tests that hold them.

This lives among the tests because a test compares each file with the text that the same code
writes, and because neither the wheel nor the chart's archive needs it.
"""
