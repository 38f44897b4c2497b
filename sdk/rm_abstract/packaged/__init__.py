"""What our container images hold: packages with their versions, the bill of materials over them, and the examination.

Uses the standard library alone, as the smallest of the images has little more.
"""
