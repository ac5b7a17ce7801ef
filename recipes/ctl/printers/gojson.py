"""``-w json``: answers as Go's ``encoding/json`` writes etcd's structs.

Messages: fields in declared order, empty ones left out, numbers as numbers (64 bits, too), bytes in base64, a oneof
below the name of its Go field. Leases and watches are structs of Go's client, with names and rules of their own.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Iterator, Sequence

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from kvserver.proto import rpc_pb2
from recipes.ctl.gotext import format_duration, json_string
from recipes.ctl.printers.base import Hashes, Health, Printer, Statuses
from recipes.ctl.printers.rows import truth


def message_json(message: Message) -> str:
    """Answer a message as JSON."""
    return "{" + ",".join(_members(message)) + "}"


def _members(message: Message) -> Iterator[str]:
    oneofs: set[str] = set()
    for field in message.DESCRIPTOR.fields:
        oneof = field.containing_oneof
        if oneof is not None:
            chosen = message.WhichOneof(oneof.name)
            if oneof.name not in oneofs and chosen is not None:
                inner = message_json(getattr(message, chosen))
                yield f'"{oneof.name.capitalize()}":{{"{chosen}":{inner}}}'
            oneofs.add(oneof.name)
            continue
        value = getattr(message, field.name)
        if field.is_repeated:
            if value:
                yield f'"{field.name}":[' + ",".join(_value(item) for item in value) + "]"
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            if message.HasField(field.name):
                yield f'"{field.name}":{message_json(value)}'
        elif value:
            yield f'"{field.name}":{_value(value)}'


def _value(value: object) -> str:
    if isinstance(value, Message):
        return message_json(value)
    if isinstance(value, bytes):
        return base64(value)
    if isinstance(value, str):
        return json_string(value)
    return truth(value) if isinstance(value, bool) else str(value)


def base64(value: bytes) -> str:
    """Answer bytes as a JSON string in base64."""
    return f'"{b2a_base64(value, newline=False).decode()}"'


class JsonPrinter(Printer):
    """The JSON format."""

    name = "json"

    def message(self, response: Message) -> None:
        self.write(message_json(response))

    def _beside_header(self, header: rpc_pb2.ResponseHeader, *members: str) -> None:
        self.write("{" + ",".join([*_members(header), *members]) + "}")

    def watch(self, response: rpc_pb2.WatchResponse) -> None:
        events = ",".join(map(message_json, response.events))
        self.write(
            f'{{"Header":{message_json(response.header)},"Events":[{events}],'
            f'"CompactRevision":{response.compact_revision},"Canceled":{truth(response.canceled)},'
            f'"Created":{truth(response.created)}}}'
        )

    def lease_grant(self, response: rpc_pb2.LeaseGrantResponse) -> None:
        self._beside_header(
            response.header,
            f'"ID":{response.ID}',
            f'"TTL":{response.TTL}',
            f'"Error":{json_string(response.error)}',
        )

    def lease_keep_alive(self, response: rpc_pb2.LeaseKeepAliveResponse) -> None:
        self._beside_header(response.header, f'"ID":{response.ID}', f'"TTL":{response.TTL}')

    def lease_time_to_live(self, response: rpc_pb2.LeaseTimeToLiveResponse, keys: bool) -> None:
        shown = "[" + ",".join(map(base64, response.keys)) + "]" if response.keys else "null"
        self._beside_header(
            response.header,
            f'"id":{response.ID}',
            f'"ttl":{response.TTL}',
            f'"granted-ttl":{response.grantedTTL}',
            f'"keys":{shown}',
        )

    def leases(self, response: rpc_pb2.LeaseLeasesResponse) -> None:
        shown = ",".join(f'{{"id":{lease.ID}}}' for lease in response.leases)
        self._beside_header(response.header, f'"leases":[{shown}]')

    def member_list(self, response: rpc_pb2.MemberListResponse) -> None:
        if not self.hex_output:
            self.message(response)
            return
        members = ",".join(map(_hex_member, response.members))
        header = response.header
        self.write(
            f'{{"header":{{"cluster_id":"{header.cluster_id:x}","member_id":"{header.member_id:x}",'
            f'"raft_term":{header.raft_term}}},"members":[{members}]}}'
        )

    def endpoint_health(self, healths: Sequence[Health]) -> None:
        shown = []
        for health in healths:
            text = f'{{"endpoint":{json_string(health.endpoint)},"health":{truth(health.healthy)}'
            text += f',"took":"{format_duration(health.took_nanoseconds)}"'
            if health.error:
                text += f',"error":{json_string(health.error)}'
            shown.append(text + "}")
        self.write(f"[{','.join(shown)}]")

    def endpoint_status(self, statuses: Statuses) -> None:
        self._endpoints("Status", statuses)

    def endpoint_hash_kv(self, hashes: Hashes) -> None:
        self._endpoints("HashKV", hashes)

    def _endpoints(self, name: str, answers: Sequence[tuple[str, Message]]) -> None:
        shown = (
            f'{{"Endpoint":{json_string(endpoint)},"{name}":{message_json(answer)}}}' for endpoint, answer in answers
        )
        self.write(f"[{','.join(shown)}]")


def _hex_member(member: rpc_pb2.Member) -> str:
    """Answer a member with ``--hex``; the odd name of the client URLs is etcdctl's."""
    peers = ",".join(map(json_string, member.peerURLs))
    clients = ",".join(map(json_string, member.clientURLs))
    return f'{{"ID":"{member.ID:x}","name":{json_string(member.name)},"peerURLs":[{peers}],"clientURLS":[{clients}]}}'
