"""An index over HTTP."""
