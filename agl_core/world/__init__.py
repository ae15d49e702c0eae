"""The built-in world: procedural cities in oblique views, with exact heights and pose."""
