"""What the two small services of the frame's tests promise: `relay` asks and tells, `leaf` answers and hears."""

from __future__ import annotations

from marshmallow import Schema, fields

from contracts import errors
from contracts.promise import Event, Rpc


class Nothing(Schema):
    pass


class EchoRequest(Schema):
    text = fields.String(required=True)
    seconds = fields.Float(load_default=0.0)
    id = fields.String(
        load_default=None, allow_none=True
    )  # chosen by the caller: the leaf writes the text once under it


class Echo(Schema):
    text = fields.String(required=True)
    pid = fields.Integer(required=True)
    left = fields.Float(required=True)  # seconds of the deadline that the leaf saw
    user = fields.String(required=True)
    flow_id = fields.String(required=True, allow_none=True)
    request_id = fields.String(required=True)


class FailRequest(Schema):
    how = fields.String(required=True)


class BurstRequest(Schema):
    text = fields.String(required=True)
    count = fields.Integer(required=True)


class Said(Schema):
    text = fields.String(required=True)
    number = fields.Integer(required=True)


class Beat(Schema):
    host_id = fields.String(required=True)
    number = fields.Integer(required=True)


class Tally(Schema):
    rows = fields.Integer(required=True)
    distinct = fields.Integer(required=True)
    pids = fields.List(fields.Integer(), required=True)
    runs = fields.Integer(required=True)  # how often `echo` was run
    texts = fields.List(fields.String(), required=True)
    callers = fields.List(fields.String(), required=True)


echo = Rpc("leaf", "echo", EchoRequest, Echo)
fail = Rpc("leaf", "fail", FailRequest, Echo, errors=(errors.DiskBusy,))
tally = Rpc("leaf", "tally", Nothing, Tally)
nested = Rpc("relay", "nested", EchoRequest, Echo)
burst = Rpc("relay", "burst", BurstRequest, Nothing, deadline=60.0)
lost = Rpc("relay", "lost", Nothing, Nothing)  # tells, then rolls back
errand = Rpc("relay", "errand", EchoRequest, Nothing)  # a flow; with the text "hard" it needs a person
said = Event("relay", "said", Said)
beat = Event("agent", "beat", Beat)
