"""The stats of all processes of an application, in files of one directory."""
