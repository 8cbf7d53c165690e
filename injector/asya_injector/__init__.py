"""The admission injector of asya-runtime: annotated pods come up as actors."""

__version__ = "0.2.0"
