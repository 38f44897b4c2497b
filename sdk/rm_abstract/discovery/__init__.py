"""Finding plugins: decorators, scanned modules, entry points, other frameworks; blueprints, caches and figures.

Nothing that is found is imported before it is used. What a source file offers is read from its text and remembered in
an index on disk, so that the next process reads neither.
"""
