"""Example applications, installed as `gevent_mesh_examples`."""
