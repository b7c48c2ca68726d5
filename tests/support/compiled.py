"""A pytest plugin: `-p tests.support.compiled` runs the tests over the compiled hot modules."""

from control_plane.compiled import library

# Here, not in a hook: what it replaces must not have been imported.
if not library.use():
    raise RuntimeError("the hot modules are not compiled: run scripts/install")
