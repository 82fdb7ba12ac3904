from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_UNSPECIFIED: _ClassVar[Reason]
    REASON_DONE: _ClassVar[Reason]
    REASON_USER_LEFT: _ClassVar[Reason]
    REASON_TARGET_RESET: _ClassVar[Reason]
    REASON_IDLE_TIMEOUT: _ClassVar[Reason]
    REASON_BAD_REQUEST: _ClassVar[Reason]
    REASON_HEAD_TOO_LARGE: _ClassVar[Reason]
    REASON_HEAD_TIMEOUT: _ClassVar[Reason]
    REASON_HANDSHAKE_FAILED: _ClassVar[Reason]
    REASON_UNAUTHENTICATED: _ClassVar[Reason]
    REASON_WRONG_ROLE: _ClassVar[Reason]
    REASON_WRONG_TRUST_DOMAIN: _ClassVar[Reason]
    REASON_SOURCE_NOT_ALLOWED: _ClassVar[Reason]
    REASON_UNKNOWN_NODE: _ClassVar[Reason]
    REASON_AMBIGUOUS_NAME: _ClassVar[Reason]
    REASON_NODE_NOT_ATTACHED: _ClassVar[Reason]
    REASON_UNKNOWN_SERVICE: _ClassVar[Reason]
    REASON_TARGET_NOT_ALLOWED: _ClassVar[Reason]
    REASON_NOT_FOUND: _ClassVar[Reason]
    REASON_METHOD_NOT_ALLOWED: _ClassVar[Reason]
    REASON_NAME_NOT_RESOLVED: _ClassVar[Reason]
    REASON_DIAL_REFUSED: _ClassVar[Reason]
    REASON_DIAL_UNREACHABLE: _ClassVar[Reason]
    REASON_DIAL_TIMEOUT: _ClassVar[Reason]
    REASON_DIAL_FAILED: _ClassVar[Reason]
    REASON_TARGET_PROTOCOL: _ClassVar[Reason]
    REASON_TARGET_TIMEOUT: _ClassVar[Reason]
    REASON_TOO_MANY_CONNECTIONS: _ClassVar[Reason]
    REASON_TOO_MANY_FROM_SOURCE: _ClassVar[Reason]
    REASON_TOO_MANY_STREAMS: _ClassVar[Reason]
    REASON_TOO_MANY_SESSIONS: _ClassVar[Reason]
    REASON_NO_DESCRIPTORS: _ClassVar[Reason]
    REASON_STALLED_UNDER_PRESSURE: _ClassVar[Reason]
    REASON_OPEN_FLOOD: _ClassVar[Reason]
    REASON_OPEN_TIMEOUT: _ClassVar[Reason]
    REASON_SEND_MEMORY_FULL: _ClassVar[Reason]
    REASON_TOO_MANY_OF_USER: _ClassVar[Reason]
    REASON_BAD_CSR: _ClassVar[Reason]
    REASON_WEAK_KEY: _ClassVar[Reason]
    REASON_CSR_NAME_MISMATCH: _ClassVar[Reason]
    REASON_TOKEN_WRONG: _ClassVar[Reason]
    REASON_TOKEN_EXPIRED: _ClassVar[Reason]
    REASON_TOKEN_USED_UP: _ClassVar[Reason]
    REASON_TOKEN_REVOKED: _ClassVar[Reason]
    REASON_TOKEN_NAME_MISMATCH: _ClassVar[Reason]
    REASON_TOKEN_REPLAYED: _ClassVar[Reason]
    REASON_REVOKED: _ClassVar[Reason]
    REASON_SESSION_LOST: _ClassVar[Reason]
    REASON_PING_TIMEOUT: _ClassVar[Reason]
    REASON_CARRIER_LOST: _ClassVar[Reason]
    REASON_TAKEN_OVER: _ClassVar[Reason]
    REASON_SERVER_STOPPING: _ClassVar[Reason]
    REASON_AGENT_STOPPING: _ClassVar[Reason]
    REASON_ATTACH_TIMEOUT: _ClassVar[Reason]
    REASON_STALE_ATTEMPT: _ClassVar[Reason]
    REASON_UNKNOWN_SESSION: _ClassVar[Reason]
    REASON_PEER_STALLED: _ClassVar[Reason]
    REASON_GRACE_EXPIRED: _ClassVar[Reason]
    REASON_AGENT_RESTARTED: _ClassVar[Reason]
    REASON_SESSION_MISMATCH: _ClassVar[Reason]
    REASON_DUPLICATE_NODE: _ClassVar[Reason]
    REASON_TOO_MANY_ATTACHES: _ClassVar[Reason]
    REASON_MALFORMED_PACKET: _ClassVar[Reason]
    REASON_PROTOCOL_ERROR: _ClassVar[Reason]
    REASON_UNKNOWN_FRAME: _ClassVar[Reason]
    REASON_VERSION_MISMATCH: _ClassVar[Reason]
    REASON_CREDIT_OVERRUN: _ClassVar[Reason]
    REASON_ACK_OF_UNSENT: _ClassVar[Reason]
    REASON_DATA_AFTER_END: _ClassVar[Reason]
    REASON_DATA_GAP: _ClassVar[Reason]
    REASON_STREAM_NEVER_OPENED: _ClassVar[Reason]
    REASON_TLS_TOO_OLD: _ClassVar[Reason]
    REASON_STORE_FULL: _ClassVar[Reason]
    REASON_STORE_FAILED: _ClassVar[Reason]
    REASON_AUDIT_FAILED: _ClassVar[Reason]
    REASON_ROTATION_REFUSED: _ClassVar[Reason]
    REASON_AUTHORITY_UNUSABLE: _ClassVar[Reason]
    REASON_INTERNAL_ERROR: _ClassVar[Reason]
    REASON_TOO_MANY_ENROLMENTS: _ClassVar[Reason]
    REASON_TOO_MANY_GUESSES: _ClassVar[Reason]
    REASON_CERTIFICATE_EXPIRED: _ClassVar[Reason]
    REASON_FRAME_FLOOD: _ClassVar[Reason]
    REASON_NOT_GRANTED: _ClassVar[Reason]
    REASON_MISDIRECTED: _ClassVar[Reason]
    REASON_CERTIFICATE_UNUSABLE: _ClassVar[Reason]
    REASON_ROOT_RETIRED: _ClassVar[Reason]
    REASON_NUMBER_OUT_OF_RANGE: _ClassVar[Reason]
REASON_UNSPECIFIED: Reason
REASON_DONE: Reason
REASON_USER_LEFT: Reason
REASON_TARGET_RESET: Reason
REASON_IDLE_TIMEOUT: Reason
REASON_BAD_REQUEST: Reason
REASON_HEAD_TOO_LARGE: Reason
REASON_HEAD_TIMEOUT: Reason
REASON_HANDSHAKE_FAILED: Reason
REASON_UNAUTHENTICATED: Reason
REASON_WRONG_ROLE: Reason
REASON_WRONG_TRUST_DOMAIN: Reason
REASON_SOURCE_NOT_ALLOWED: Reason
REASON_UNKNOWN_NODE: Reason
REASON_AMBIGUOUS_NAME: Reason
REASON_NODE_NOT_ATTACHED: Reason
REASON_UNKNOWN_SERVICE: Reason
REASON_TARGET_NOT_ALLOWED: Reason
REASON_NOT_FOUND: Reason
REASON_METHOD_NOT_ALLOWED: Reason
REASON_NAME_NOT_RESOLVED: Reason
REASON_DIAL_REFUSED: Reason
REASON_DIAL_UNREACHABLE: Reason
REASON_DIAL_TIMEOUT: Reason
REASON_DIAL_FAILED: Reason
REASON_TARGET_PROTOCOL: Reason
REASON_TARGET_TIMEOUT: Reason
REASON_TOO_MANY_CONNECTIONS: Reason
REASON_TOO_MANY_FROM_SOURCE: Reason
REASON_TOO_MANY_STREAMS: Reason
REASON_TOO_MANY_SESSIONS: Reason
REASON_NO_DESCRIPTORS: Reason
REASON_STALLED_UNDER_PRESSURE: Reason
REASON_OPEN_FLOOD: Reason
REASON_OPEN_TIMEOUT: Reason
REASON_SEND_MEMORY_FULL: Reason
REASON_TOO_MANY_OF_USER: Reason
REASON_BAD_CSR: Reason
REASON_WEAK_KEY: Reason
REASON_CSR_NAME_MISMATCH: Reason
REASON_TOKEN_WRONG: Reason
REASON_TOKEN_EXPIRED: Reason
REASON_TOKEN_USED_UP: Reason
REASON_TOKEN_REVOKED: Reason
REASON_TOKEN_NAME_MISMATCH: Reason
REASON_TOKEN_REPLAYED: Reason
REASON_REVOKED: Reason
REASON_SESSION_LOST: Reason
REASON_PING_TIMEOUT: Reason
REASON_CARRIER_LOST: Reason
REASON_TAKEN_OVER: Reason
REASON_SERVER_STOPPING: Reason
REASON_AGENT_STOPPING: Reason
REASON_ATTACH_TIMEOUT: Reason
REASON_STALE_ATTEMPT: Reason
REASON_UNKNOWN_SESSION: Reason
REASON_PEER_STALLED: Reason
REASON_GRACE_EXPIRED: Reason
REASON_AGENT_RESTARTED: Reason
REASON_SESSION_MISMATCH: Reason
REASON_DUPLICATE_NODE: Reason
REASON_TOO_MANY_ATTACHES: Reason
REASON_MALFORMED_PACKET: Reason
REASON_PROTOCOL_ERROR: Reason
REASON_UNKNOWN_FRAME: Reason
REASON_VERSION_MISMATCH: Reason
REASON_CREDIT_OVERRUN: Reason
REASON_ACK_OF_UNSENT: Reason
REASON_DATA_AFTER_END: Reason
REASON_DATA_GAP: Reason
REASON_STREAM_NEVER_OPENED: Reason
REASON_TLS_TOO_OLD: Reason
REASON_STORE_FULL: Reason
REASON_STORE_FAILED: Reason
REASON_AUDIT_FAILED: Reason
REASON_ROTATION_REFUSED: Reason
REASON_AUTHORITY_UNUSABLE: Reason
REASON_INTERNAL_ERROR: Reason
REASON_TOO_MANY_ENROLMENTS: Reason
REASON_TOO_MANY_GUESSES: Reason
REASON_CERTIFICATE_EXPIRED: Reason
REASON_FRAME_FLOOD: Reason
REASON_NOT_GRANTED: Reason
REASON_MISDIRECTED: Reason
REASON_CERTIFICATE_UNUSABLE: Reason
REASON_ROOT_RETIRED: Reason
REASON_NUMBER_OUT_OF_RANGE: Reason

class Packet(_message.Message):
    __slots__ = ("number", "ack", "frames", "arrived", "confirm_now")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_FIELD_NUMBER: _ClassVar[int]
    CONFIRM_NOW_FIELD_NUMBER: _ClassVar[int]
    number: int
    ack: int
    frames: _containers.RepeatedCompositeFieldContainer[Frame]
    arrived: int
    confirm_now: bool
    def __init__(self, number: _Optional[int] = ..., ack: _Optional[int] = ..., frames: _Optional[_Iterable[_Union[Frame, _Mapping]]] = ..., arrived: _Optional[int] = ..., confirm_now: _Optional[bool] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("data", "credit", "end", "ping", "pong", "open", "opened", "refused", "reset", "stop", "hello", "welcome", "use", "rejected", "bye", "draining")
    DATA_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    USE_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    BYE_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    data: Data
    credit: Credit
    end: End
    ping: Ping
    pong: Pong
    open: Open
    opened: Opened
    refused: Refused
    reset: Reset
    stop: Stop
    hello: Hello
    welcome: Welcome
    use: Use
    rejected: Rejected
    bye: Bye
    draining: Draining
    def __init__(self, data: _Optional[_Union[Data, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ..., end: _Optional[_Union[End, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ..., open: _Optional[_Union[Open, _Mapping]] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., reset: _Optional[_Union[Reset, _Mapping]] = ..., stop: _Optional[_Union[Stop, _Mapping]] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., use: _Optional[_Union[Use, _Mapping]] = ..., rejected: _Optional[_Union[Rejected, _Mapping]] = ..., bye: _Optional[_Union[Bye, _Mapping]] = ..., draining: _Optional[_Union[Draining, _Mapping]] = ...) -> None: ...

class Data(_message.Message):
    __slots__ = ("stream", "offset", "payload")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    stream: int
    offset: int
    payload: bytes
    def __init__(self, stream: _Optional[int] = ..., offset: _Optional[int] = ..., payload: _Optional[bytes] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("stream", "limit")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    stream: int
    limit: int
    def __init__(self, stream: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class End(_message.Message):
    __slots__ = ("stream", "size")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    stream: int
    size: int
    def __init__(self, stream: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class Reset(_message.Message):
    __slots__ = ("stream", "reason", "detail")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    stream: int
    reason: Reason
    detail: str
    def __init__(self, stream: _Optional[int] = ..., reason: _Optional[_Union[Reason, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class Stop(_message.Message):
    __slots__ = ("stream", "reason")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    stream: int
    reason: Reason
    def __init__(self, stream: _Optional[int] = ..., reason: _Optional[_Union[Reason, str]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("stream", "target", "user", "entrance", "credit", "early_data", "verb", "priority", "target_tls")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    ENTRANCE_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    EARLY_DATA_FIELD_NUMBER: _ClassVar[int]
    VERB_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TARGET_TLS_FIELD_NUMBER: _ClassVar[int]
    stream: int
    target: str
    user: str
    entrance: str
    credit: int
    early_data: bytes
    verb: str
    priority: int
    target_tls: bool
    def __init__(self, stream: _Optional[int] = ..., target: _Optional[str] = ..., user: _Optional[str] = ..., entrance: _Optional[str] = ..., credit: _Optional[int] = ..., early_data: _Optional[bytes] = ..., verb: _Optional[str] = ..., priority: _Optional[int] = ..., target_tls: _Optional[bool] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("stream", "credit", "address")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    stream: int
    credit: int
    address: str
    def __init__(self, stream: _Optional[int] = ..., credit: _Optional[int] = ..., address: _Optional[str] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("stream", "reason", "detail")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    stream: int
    reason: Reason
    detail: str
    def __init__(self, stream: _Optional[int] = ..., reason: _Optional[_Union[Reason, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("token", "round_trip_us")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_US_FIELD_NUMBER: _ClassVar[int]
    token: int
    round_trip_us: int
    def __init__(self, token: _Optional[int] = ..., round_trip_us: _Optional[int] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: int
    def __init__(self, token: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("version", "attempt", "instance", "boot", "software", "session", "secret", "have", "services", "features", "initial_credit", "metered", "max_bytes_per_second", "use")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    HAVE_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    INITIAL_CREDIT_FIELD_NUMBER: _ClassVar[int]
    METERED_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    USE_FIELD_NUMBER: _ClassVar[int]
    version: int
    attempt: int
    instance: bytes
    boot: bytes
    software: str
    session: bytes
    secret: bytes
    have: int
    services: _containers.RepeatedCompositeFieldContainer[Service]
    features: _containers.RepeatedScalarFieldContainer[str]
    initial_credit: int
    metered: bool
    max_bytes_per_second: int
    use: bool
    def __init__(self, version: _Optional[int] = ..., attempt: _Optional[int] = ..., instance: _Optional[bytes] = ..., boot: _Optional[bytes] = ..., software: _Optional[str] = ..., session: _Optional[bytes] = ..., secret: _Optional[bytes] = ..., have: _Optional[int] = ..., services: _Optional[_Iterable[_Union[Service, _Mapping]]] = ..., features: _Optional[_Iterable[str]] = ..., initial_credit: _Optional[int] = ..., metered: _Optional[bool] = ..., max_bytes_per_second: _Optional[int] = ..., use: _Optional[bool] = ...) -> None: ...

class Service(_message.Message):
    __slots__ = ("name", "protocol", "target")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    name: str
    protocol: str
    target: str
    def __init__(self, name: _Optional[str] = ..., protocol: _Optional[str] = ..., target: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("version", "session", "secret", "have", "software", "ping_interval_ms", "missed_pings", "max_streams", "early_data_limit", "initial_credit", "alias", "replica", "replica_address", "trust_bundle", "features", "grace_ms", "resumed", "used")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    HAVE_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    PING_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    MISSED_PINGS_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAMS_FIELD_NUMBER: _ClassVar[int]
    EARLY_DATA_LIMIT_FIELD_NUMBER: _ClassVar[int]
    INITIAL_CREDIT_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    REPLICA_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TRUST_BUNDLE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    version: int
    session: bytes
    secret: bytes
    have: int
    software: str
    ping_interval_ms: int
    missed_pings: int
    max_streams: int
    early_data_limit: int
    initial_credit: int
    alias: str
    replica: str
    replica_address: str
    trust_bundle: bytes
    features: _containers.RepeatedScalarFieldContainer[str]
    grace_ms: int
    resumed: bool
    used: bool
    def __init__(self, version: _Optional[int] = ..., session: _Optional[bytes] = ..., secret: _Optional[bytes] = ..., have: _Optional[int] = ..., software: _Optional[str] = ..., ping_interval_ms: _Optional[int] = ..., missed_pings: _Optional[int] = ..., max_streams: _Optional[int] = ..., early_data_limit: _Optional[int] = ..., initial_credit: _Optional[int] = ..., alias: _Optional[str] = ..., replica: _Optional[str] = ..., replica_address: _Optional[str] = ..., trust_bundle: _Optional[bytes] = ..., features: _Optional[_Iterable[str]] = ..., grace_ms: _Optional[int] = ..., resumed: _Optional[bool] = ..., used: _Optional[bool] = ...) -> None: ...

class Use(_message.Message):
    __slots__ = ("attempt", "have")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    HAVE_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    have: int
    def __init__(self, attempt: _Optional[int] = ..., have: _Optional[int] = ...) -> None: ...

class Rejected(_message.Message):
    __slots__ = ("reason", "detail", "retry_after_ms")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    reason: Reason
    detail: str
    retry_after_ms: int
    def __init__(self, reason: _Optional[_Union[Reason, str]] = ..., detail: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class Bye(_message.Message):
    __slots__ = ("reason", "detail")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    reason: Reason
    detail: str
    def __init__(self, reason: _Optional[_Union[Reason, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class Draining(_message.Message):
    __slots__ = ("deadline_ms",)
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    deadline_ms: int
    def __init__(self, deadline_ms: _Optional[int] = ...) -> None: ...
