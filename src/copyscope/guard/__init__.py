"""Guard: wrap a pipeline, model or function so that it returns no copies."""
