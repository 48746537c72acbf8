"""Pictures of clouds, of where a model looks, how it routes, and what it confuses."""
