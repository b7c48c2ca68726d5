"""The words on the wire, as pydantic models that import nothing but each other."""
