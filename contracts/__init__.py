"""The promises: everything that travels on the bus. Nothing but marshmallow below."""
