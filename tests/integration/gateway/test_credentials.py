"""Nobody is let in without credentials that hold, into nothing; and what is for operators only, is."""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import jwt
import pytest
from credentials import AUDIENCE, ISSUER, Issuer, KeysFile, bearer
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from refusals import Refusal, refused
from worldtree.options.v1 import options_pb2
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_gateway.domain import GATEWAY, SERVICES
from worldtree_gateway.identity import Role
from worldtree_runtime.server import start_server
from worldtree_runtime.settings import ServiceSettings

METHODS = [(service, method) for service in (*SERVICES, GATEWAY) for method in service.descriptor.methods]
IDS = [f"{service.section}-{method.name}" for service, method in METHODS]
FOREIGN = [
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", True, True),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", True, True),
    ("/inference.GRPCInferenceService/ModelInfer", False, False),
    ("/worldtree.video.v1.VideoGenerator/NobodyKnows", False, False),
    ("/nobody.knows.Service/Method", True, True),
]
NAVIGATOR = "worldtree.navigator.v1.Navigator"
LOOK_S = 0.01  # less than making a key takes, so that one that was just made is known
LIST = "/worldtree.video.v1.VideoGenerator/ListModels"


def call(channel: Any, path: str, client_streaming: bool, server_streaming: bool, metadata: Any) -> Any:
    """An empty message, or none, to any method, as raw bytes."""
    kind = ("stream" if client_streaming else "unary", "stream" if server_streaming else "unary")

    async def nothing() -> AsyncIterator[bytes]:
        return
        yield b""

    asked: Any = nothing() if client_streaming else b""
    return getattr(channel, "_".join(kind))(path)(asked, metadata=metadata, timeout=20)


async def told(channel: Any, path: str, client_streaming: bool, server_streaming: bool, metadata: Any) -> Any:
    """The code that a call ends with, and its refusal where that is of the family."""
    try:
        under_way = call(channel, path, client_streaming, server_streaming, metadata)
        if server_streaming:
            [each async for each in under_way]
        else:
            await under_way
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.fixture
def keys(tmp_path: Path) -> KeysFile:
    return KeysFile(tmp_path / "keys")


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path / "jwks.json")


@pytest.fixture
async def guarded(start_backend: Any, open_gateway: Any, keys: KeysFile, issuer: Issuer) -> AsyncIterator[Any]:
    """`await guarded(**settings)`: a gateway that asks for credentials, its backend's metadata beside it."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> Any:
            backend = await start_backend("a")
            known = {
                "keys_file": keys.path,
                "jwks_file": issuer.path,
                "jwt_issuer": ISSUER,
                "jwt_audience": AUDIENCE,
                "credentials_look_s": LOOK_S,
            }
            client = await stack.enter_async_context(open_gateway(backend.address, **{**known, **settings}))
            client.backend = backend
            return client

        yield start


async def who(client: Any, metadata: Any) -> str:
    """The tenant that the backend is told."""
    await client.stub.Get(pb.GetRequest(session="s.a"), metadata=metadata)
    return str(client.backend.metadata[-1]["worldtree-tenant"])


async def shown(client: Any, metadata: Any) -> Refusal:
    return await refused(client.stub.Get(pb.GetRequest(session="s.a"), metadata=metadata))


def flags(method: MethodDescriptor) -> tuple[bool, bool]:
    return method.client_streaming, method.server_streaming


async def test_no_method_answers_without_credentials(guarded: Any) -> None:
    """Of every service that there is a proto of, so also of one that is new."""
    client = await guarded()
    asked = [(f"/{service.full_name}/{method.name}", *flags(method)) for service, method in METHODS]
    assert len(asked) > 30
    for path, client_streaming, server_streaming in (*asked, *FOREIGN):
        for metadata in ((), bearer("wt_00000000_" + "A" * 43), bearer("a.b.c"), bearer("x")):
            code = await told(client.channel, path, client_streaming, server_streaming, metadata)
            assert code is grpc.StatusCode.UNAUTHENTICATED, (path, metadata)
    assert not set(client.backend.calls) - {"ListModels"}, "the backend was asked"  # the gateway's own probe


async def test_a_refusal_says_what_is_asked_for(guarded: Any) -> None:
    client = await guarded()
    refusal = await shown(client, ())
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING")
    assert "authorization: Bearer" in refusal.message
    assert await client.metric("worldtree_refused_callers_total", reason="CREDENTIALS_MISSING") == 1


async def test_health_is_open_and_reflection_is_not(guarded: Any, keys: KeysFile) -> None:
    client = await guarded()
    check = client.channel.unary_unary("/grpc.health.v1.Health/Check")
    answer = health_pb2.HealthCheckResponse.FromString(await check(b""))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    request = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    reflect = client.channel.stream_stream(FOREIGN[0][0])
    listed = [
        reflection_pb2.ServerReflectionResponse.FromString(each)
        async for each in reflect(iter([request]), metadata=bearer(keys.add("acme")))
    ]
    names = {each.name for each in listed[0].list_services_response.service}
    assert "worldtree.video.v1.VideoGenerator" in names


@pytest.mark.parametrize(
    "metadata",
    [
        lambda key: (("authorization", f"Bearer {key}"),),
        lambda key: (("authorization", f"bearer   {key} "),),
        lambda key: (("authorization", f"Api-Key {key}"),),
        lambda key: (("x-api-key", key),),
    ],
)
async def test_a_key_is_taken_as_clients_show_it(guarded: Any, keys: KeysFile, metadata: Any) -> None:
    client = await guarded()
    assert await who(client, metadata(keys.add("acme"))) == "acme"


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (lambda key: (("authorization", key),), "CREDENTIALS_UNREADABLE"),
        (lambda key: (("authorization", f"Basic {key}"),), "CREDENTIALS_UNREADABLE"),
        (lambda key: (("authorization", "Bearer "),), "CREDENTIALS_UNREADABLE"),
        (lambda key: (("authorization", f"Bearer {key[:-1]}"),), "CREDENTIALS_UNREADABLE"),
        (lambda key: (("authorization", f"Bearer {key}"), ("x-api-key", key)), "CREDENTIALS_UNREADABLE"),
        (lambda key: (("x-api-key", key), ("x-api-key", key)), "CREDENTIALS_UNREADABLE"),
        (lambda key: bearer(key[:-1] + ("A" if key[-1] != "A" else "B")), "KEY_REFUSED"),
        (lambda key: bearer("wt_00000000" + key[11:]), "KEY_REFUSED"),
    ],
)
async def test_what_is_no_key_is_refused_and_never_repeated(
    guarded: Any, keys: KeysFile, metadata: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    client, key = await guarded(), keys.add("acme")
    caplog.set_level(logging.DEBUG)
    for _ in range(2):  # before and after the right one was seen
        refusal = await shown(client, metadata(key))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)
        assert key[12:-1] not in f"{refusal.message}{refusal.details}"
        assert await who(client, bearer(key)) == "acme"
    assert key[12:-1] not in "".join(f"{vars(record)}" for record in caplog.records)


async def test_a_caller_cannot_name_its_tenant(guarded: Any, keys: KeysFile) -> None:
    client = await guarded()
    assert await who(client, (*bearer(keys.add("acme")), ("worldtree-tenant", "globex"))) == "acme"


async def test_a_key_goes_no_further_than_the_gateway(guarded: Any, keys: KeysFile, issuer: Issuer) -> None:
    client, key = await guarded(), keys.add("acme")
    for metadata in (bearer(key), (("x-api-key", key),), bearer(issuer.token())):
        await who(client, metadata)
        generating = client.stub.Generate(pb.GenerateRequest(model={"name": "echo"}), metadata=metadata)
        [each async for each in generating]
        play = client.stub.Play(metadata=metadata)
        await play.write(pb.PlayRequest(session="s.a", begin=pb.PlayRequest.Begin()))
        await play.done_writing()
        [each async for each in play]
    told = [name for metadata in client.backend.metadata for name in metadata]
    assert not {"authorization", "x-api-key"} & set(told)


async def test_the_navigator_gets_a_key_to_ask_a_gateway_with(guarded: Any, keys: KeysFile) -> None:
    key, seen = keys.add("acme"), []

    async def note(_: bytes, context: Any) -> bytes:
        seen.append(dict(context.invocation_metadata()))
        return b""

    def register(server: Any) -> list[str]:
        handlers = {"ListPlanners": grpc.unary_unary_rpc_method_handler(note)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAVIGATOR, handlers),))
        return [NAVIGATOR]

    settings = ServiceSettings(port=0, metrics_port=0, drain_timeout_s=0.0)
    async with start_server(settings, service="navigator", register=register) as navigator:
        client = await guarded(navigator=[navigator.address])
        ask = client.channel.unary_unary(f"/{NAVIGATOR}/ListPlanners")
        for metadata in (bearer(key), (("x-api-key", key),), (("authorization", f"Api-Key {key}"),)):
            await ask(b"", metadata=metadata)
    assert [each["authorization"].split()[1] for each in seen] == [key] * 3
    assert all("x-api-key" not in each and each["worldtree-tenant"] == "acme" for each in seen)


async def test_keys_are_rotated_while_the_gateway_runs(guarded: Any, keys: KeysFile) -> None:
    first = keys.add("acme")
    client = await guarded()
    assert await who(client, bearer(first)) == "acme"
    second = keys.add("acme")
    await asyncio.sleep(0.1)
    assert await who(client, bearer(first)) == await who(client, bearer(second)) == "acme"
    keys.revoke(first)
    await asyncio.sleep(0.1)
    assert (await shown(client, bearer(first))).reason == "KEY_REFUSED"
    assert await who(client, bearer(second)) == "acme"


async def begun(client: Any, metadata: Any) -> Any:
    play = client.stub.Play(metadata=metadata)
    await play.write(pb.PlayRequest(session="s.a", begin=pb.PlayRequest.Begin()))
    assert (await play.read()).HasField("begun")
    return play


@pytest.mark.parametrize("change", ["revoked", "another role"])
async def test_a_stream_ends_when_its_key_no_longer_lets_in(guarded: Any, keys: KeysFile, change: str) -> None:
    key, other = keys.add("acme"), keys.add("globex")
    client = await guarded(stream_look_s=0.05)
    play, others = await begun(client, bearer(key)), await begun(client, bearer(other))
    await asyncio.sleep(0.5)
    for each in (play, others):
        await each.write(pb.PlayRequest(act=pb.PlayRequest.Act(actions=[pb.Action(id=1)])))
        assert (await each.read()).HasField("played"), "it ended although its key holds"
    if change == "revoked":
        keys.revoke(key)
    else:
        keys.path.write_text(keys.path.read_text().replace("acme user", "acme operator"))
    refusal = await refused(play.read())
    assert refusal.code is grpc.StatusCode.UNAUTHENTICATED
    assert refusal.reason == ("KEY_REFUSED" if change == "revoked" else "CREDENTIALS_CHANGED")
    await client.until(lambda: client.backend.closed["Play"] == 1)
    await others.write(pb.PlayRequest(act=pb.PlayRequest.Act(actions=[pb.Action(id=1)])))
    assert (await others.read()).HasField("played")
    others.cancel()


async def test_a_stream_goes_on_though_its_token_expires_and_ends_when_its_key_is_gone(
    guarded: Any, issuer: Issuer
) -> None:
    client = await guarded(stream_look_s=0.05, jwt_leeway_s=0)
    metadata = bearer(issuer.token(exp=int(time.time()) + 2))
    play = await begun(client, metadata)
    await asyncio.sleep(3)
    assert (await shown(client, metadata)).reason == "TOKEN_EXPIRED"
    await play.write(pb.PlayRequest(act=pb.PlayRequest.Act(actions=[pb.Action(id=1)])))
    assert (await play.read()).HasField("played")
    issuer.write(ec=issuer.ec)
    assert (await refused(play.read())).reason == "TOKEN_KEY_UNKNOWN"


async def test_a_file_that_cannot_be_read_leaves_the_keys_as_they_were(
    guarded: Any, keys: KeysFile, caplog: pytest.LogCaptureFixture
) -> None:
    key = keys.add("acme")
    client = await guarded()
    for text in ("half of a li", f"{keys.line(key)}\n{keys.line(key)}\n", "0" * 8 + " acme root $scrypt$\n"):
        keys.path.write_text(text)
        await asyncio.sleep(0.1)
        assert await who(client, bearer(key)) == "acme"
        assert "keys, line" in caplog.records[-1].message or "keys, line" in caplog.text
    keys.path.unlink()
    await asyncio.sleep(0.1)
    assert await who(client, bearer(key)) == "acme"


async def test_keys_in_redis_are_taken_rotated_and_kept_through_its_outage(
    guarded: Any, keys: KeysFile, valkey: Any
) -> None:
    other = KeysFile(keys.path.with_name("other"))
    key = other.add("acme")
    with valkey._server.client() as redis:
        client = await guarded(keys_redis=True, redis_url=valkey.url)
        assert (await shown(client, bearer(key))).reason == "KEY_REFUSED"
        redis.hset("worldtree:keys", key[3:11], other.line(key))
        redis.hset("worldtree:keys", "broken", "no line")
        await asyncio.sleep(0.5)
        assert await who(client, bearer(key)) == "acme"
        assert await who(client, bearer(keys.add("globex"))) == "globex"
        redis.hdel("worldtree:keys", key[3:11])
        await asyncio.sleep(0.5)
        assert (await shown(client, bearer(key))).reason == "KEY_REFUSED"
        redis.hset("worldtree:keys", key[3:11], other.line(key))
        await asyncio.sleep(0.5)
    valkey.kill()
    await asyncio.sleep(0.5)
    assert await who(client, bearer(key)) == "acme"


async def test_while_redis_has_not_told_its_keys_callers_are_told_to_wait(guarded: Any, valkey: Any) -> None:
    valkey.kill()
    client = await guarded(keys_redis=True, redis_url=valkey.url)
    refusal = await shown(client, bearer("wt_00000000_" + "A" * 43))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "KEYS_UNREAD")
    assert "RetryInfo" in refusal.details


async def test_who_guesses_keeps_others_waiting_no_longer_than_so_much(guarded: Any, keys: KeysFile) -> None:
    known, unseen = keys.add("acme"), keys.add("globex")
    client = await guarded()
    assert await who(client, bearer(known)) == "acme"
    guesses = [f"{unseen[:-6]}{number:06d}" for number in range(60)]
    tries = [asyncio.ensure_future(shown(client, bearer(guess))) for guess in guesses]
    await asyncio.sleep(0.05)
    began_s = time.monotonic()
    assert await who(client, bearer(known)) == "acme"
    assert time.monotonic() - began_s < 2
    reasons = {refusal.reason for refusal in await asyncio.gather(*tries)}
    assert reasons == {"KEY_REFUSED", "AUTHENTICATION_BUSY"}


async def test_who_guesses_at_one_key_keeps_nobody_from_the_first_use_of_another(guarded: Any, keys: KeysFile) -> None:
    guessed, unseen = keys.add("acme"), keys.add("globex")
    client = await guarded()
    tries = [asyncio.ensure_future(shown(client, bearer(f"{guessed[:-6]}{number:06d}"))) for number in range(60)]
    await client.until(lambda: any(each.done() for each in tries))
    assert await who(client, bearer(unseen)) == "globex"
    await asyncio.gather(*tries)


async def test_many_calls_at_once_are_let_in_by_a_key_that_was_not_seen_before(guarded: Any, keys: KeysFile) -> None:
    key = keys.add("acme")
    client = await guarded()
    assert set(await asyncio.gather(*(who(client, bearer(key)) for _ in range(40)))) == {"acme"}


async def test_guesses_count_among_the_calls_of_their_address(guarded: Any, keys: KeysFile) -> None:
    key = keys.add("acme")
    client = await guarded(max_peer_calls=1)
    guesses = (f"{key[:-6]}{number:06d}" for number in range(20))
    refusals = await asyncio.gather(*(shown(client, bearer(guess)) for guess in guesses))
    assert Counter(refusal.reason for refusal in refusals) == {"KEY_REFUSED": 1, "PEER_LIMIT": 19}


async def test_the_first_call_with_a_key_may_be_of_any_kind(guarded: Any, keys: KeysFile) -> None:
    client = await guarded()
    step = pb.StepRequest(session="s.a", actions=[pb.Action(id=1)])
    await client.stub.Step(step, metadata=bearer(keys.add("acme")))
    generate = pb.GenerateRequest(model={"name": "echo"}, actions=[pb.Action(id=1)])
    assert [each async for each in client.stub.Generate(generate, metadata=bearer(keys.add("b")))]
    play = client.stub.Play(metadata=bearer(keys.add("c")))
    await play.write(pb.PlayRequest(session="s.a", begin=pb.PlayRequest.Begin()))
    assert (await play.read()).HasField("begun")
    play.cancel()
    assert (await told(client.channel, *FOREIGN[4], bearer(keys.add("d")))) is grpc.StatusCode.UNIMPLEMENTED
    unreadable = client.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    assert (await refused(unreadable(b"\xff", metadata=bearer(keys.add("e"))))).reason == "UNDECODABLE_REQUEST"


async def test_an_operators_method_is_refused_at_the_first_use_of_a_users_key_too(guarded: Any, keys: KeysFile) -> None:
    client = await guarded()
    refusal = await refused(client.channel.unary_unary(FOREIGN[3][0])(b"", metadata=bearer(keys.add("acme"))))
    assert refusal.reason == "OPERATORS_ONLY"


# ---- tokens


async def test_a_token_is_taken_for_its_tenant(guarded: Any, issuer: Issuer) -> None:
    client = await guarded()
    assert await who(client, bearer(issuer.token())) == "acme"
    assert await who(client, bearer(issuer.token(key=issuer.ec, algorithm="ES256", kid="ec", tenant="b"))) == "b"
    assert await who(client, bearer(issuer.token(algorithm="PS384"))) == "acme"
    assert await who(client, bearer(issuer.token(aud=["others", AUDIENCE]))) == "acme"
    assert await who(client, bearer(issuer.token(kid=None))) == "acme", "one key only is for RS256"


def _unsigned(claims: dict[str, Any]) -> str:
    return jwt.encode(claims, None, algorithm="none")


def _claims(issuer: Issuer) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(issuer.token(), options={"verify_signature": False})
    return found


def _confused(issuer: Issuer, kid: str | None) -> str:
    """HS256 with the public key as its secret; by hand, as PyJWT refuses to make it."""
    import base64
    import hashlib
    import hmac

    def part(value: Any) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    signed = (
        part({"alg": "HS256", "typ": "JWT", **({} if kid is None else {"kid": kid})}) + b"." + part(_claims(issuer))
    )
    signature = hmac.new(issuer.public_pem(), signed, hashlib.sha256).digest()
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


BAD_TOKENS: dict[str, tuple[Any, str]] = {
    "expired": (lambda it: it.token(exp=int(time.time()) - 60), "TOKEN_EXPIRED"),
    "without an expiry": (lambda it: it.token(exp=None), "TOKEN_CLAIM_MISSING"),
    "for others": (lambda it: it.token(aud="others"), "TOKEN_AUDIENCE"),
    "for nobody": (lambda it: it.token(aud=None), "TOKEN_CLAIM_MISSING"),
    "of another issuer": (lambda it: it.token(iss="https://else.example"), "TOKEN_ISSUER"),
    "not yet valid": (lambda it: it.token(nbf=int(time.time()) + 60), "TOKEN_NOT_YET_VALID"),
    "alg none": (lambda it: _unsigned(_claims(it)), "TOKEN_ALGORITHM"),
    "HS256 with the public key": (lambda it: _confused(it, "rsa"), "TOKEN_ALGORITHM"),
    "the same without kid": (lambda it: _confused(it, None), "TOKEN_ALGORITHM"),
    "a curve's algorithm for RSA": (lambda it: it.token(key=it.ec, algorithm="ES256", kid="rsa"), "TOKEN_ALGORITHM"),
    "of an unknown key": (lambda it: it.token(kid="else"), "TOKEN_KEY_UNKNOWN"),
    "signed by another key": (
        lambda it: it.token(key=Issuer(it.path.with_name("else.json")).rsa),
        "TOKEN_SIGNATURE",
    ),
    "tampered with": (lambda it: it.token()[:-8] + "AAAAAAAA", "TOKEN_SIGNATURE"),
    "without a tenant": (lambda it: it.token(tenant=None), "TOKEN_TENANT"),
    "with a tenant that is none": (lambda it: it.token(tenant="ä b"), "TOKEN_TENANT"),
    "with a tenant in a list": (lambda it: it.token(tenant=["acme"]), "TOKEN_TENANT"),
    "with an unknown role": (lambda it: it.token(role="root"), "TOKEN_ROLE"),
    "without a subject": (lambda it: it.token(sub=None), "TOKEN_CLAIM_MISSING"),
    "no token": (lambda it: "a.b.c", "TOKEN_MALFORMED"),
    "too long": (lambda it: it.token(more="x" * 4500), "TOKEN_TOO_LONG"),
}


@pytest.mark.parametrize(("make", "reason"), BAD_TOKENS.values(), ids=BAD_TOKENS)
async def test_a_token_that_does_not_hold_is_refused(
    guarded: Any, issuer: Issuer, make: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client, token = await guarded(), make(issuer)
    refusal = await shown(client, bearer(token))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)
    signature = token.rpartition(".")[2]
    if len(signature) > 8:
        assert signature not in f"{refusal.message}{refusal.details}"
        assert signature not in "".join(f"{vars(record)}" for record in caplog.records)


async def test_a_clock_that_is_a_little_off_is_forgiven(guarded: Any, issuer: Issuer) -> None:
    client = await guarded(jwt_leeway_s=20)
    assert await who(client, bearer(issuer.token(exp=int(time.time()) - 5))) == "acme"
    assert (await shown(client, bearer(issuer.token(exp=int(time.time()) - 60)))).reason == "TOKEN_EXPIRED"


async def test_a_token_that_was_taken_before_expires_all_the_same(guarded: Any, issuer: Issuer) -> None:
    client, token = await guarded(jwt_leeway_s=0), issuer.token(exp=int(time.time()) + 3)
    assert await who(client, bearer(token)) == await who(client, bearer(token)) == "acme"
    await asyncio.sleep(4)
    assert (await shown(client, bearer(token))).reason == "TOKEN_EXPIRED"


async def test_the_keys_of_tokens_are_rotated_while_the_gateway_runs(guarded: Any, issuer: Issuer) -> None:
    client, old = await guarded(), issuer.token()
    assert await who(client, bearer(old)) == "acme"
    new = Issuer(issuer.path.with_name("new.json"))
    issuer.write(rsa=issuer.rsa, rsa2=new.rsa)
    await asyncio.sleep(0.1)
    fresh = new.token(kid="rsa2")
    assert await who(client, bearer(old)) == await who(client, bearer(fresh)) == "acme"
    issuer.write(rsa2=new.rsa)
    await asyncio.sleep(0.1)
    assert (await shown(client, bearer(old))).reason == "TOKEN_KEY_UNKNOWN"
    assert await who(client, bearer(fresh)) == "acme"


@pytest.mark.parametrize(
    ("settings", "credential"),
    [({"keys_file": None}, "wt_00000000_" + "A" * 43), ({"jwks_file": None}, "a.b.c")],
)
async def test_credentials_of_a_kind_that_is_not_taken_are_refused(
    guarded: Any, settings: dict[str, Any], credential: str
) -> None:
    client = await guarded(**settings)
    assert (await shown(client, bearer(credential))).reason == "CREDENTIALS_NOT_OFFERED"


# ---- roles


@pytest.mark.parametrize(("service", "method"), METHODS, ids=IDS)
async def test_a_user_may_what_is_for_users_and_an_operator_everything(
    guarded: Any, keys: KeysFile, issuer: Issuer, service: Any, method: MethodDescriptor
) -> None:
    user, operator = keys.add("acme"), keys.add("acme", Role.OPERATOR)
    client = await guarded()
    for credential, role in (
        (user, Role.USER),
        (issuer.token(), Role.USER),
        (operator, Role.OPERATOR),
        (issuer.token(role="operator"), Role.OPERATOR),
    ):
        path = f"/{service.full_name}/{method.name}"
        code = await told(client.channel, path, *flags(method), bearer(credential))
        operators_only = method.GetOptions().Extensions[options_pb2.access] == options_pb2.ACCESS_OPERATOR
        assert (code is grpc.StatusCode.PERMISSION_DENIED) == (operators_only and role is Role.USER), code
        assert code is not grpc.StatusCode.UNAUTHENTICATED


def test_what_changes_models_or_shows_what_others_do_is_for_operators() -> None:
    found = {
        method.name
        for _, method in METHODS
        if method.GetOptions().Extensions[options_pb2.access] == options_pb2.ACCESS_OPERATOR
    }
    assert found == {"Introspect", "CreateMerge", "DeleteMerge", "PurgeCache"}


async def test_a_method_that_no_proto_here_knows_is_for_operators(guarded: Any, keys: KeysFile) -> None:
    client = await guarded()
    upload = client.channel.stream_unary("/worldtree.video.v1.VideoGenerator/Upload")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await upload(iter([b"one"]), metadata=bearer(keys.add("acme")))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert await upload(iter([b"one"]), metadata=bearer(keys.add("acme", Role.OPERATOR)))


async def test_a_refused_role_is_told_with_what_it_was(guarded: Any, keys: KeysFile) -> None:
    client = await guarded()
    refusal = await refused(client.stub.Introspect(pb.IntrospectRequest(), metadata=bearer(keys.add("acme"))))
    assert refusal.reason == "OPERATORS_ONLY"
    assert refusal.details["ErrorInfo"].metadata["role"] == "user"


# ---- the cache


async def test_answers_of_one_tenant_are_not_told_to_another(guarded: Any, keys: KeysFile) -> None:
    client = await guarded()
    one, two = keys.add("acme"), keys.add("globex")
    request = pb.GenerateRequest(actions=[pb.Action(id=1)], seed=5)
    request.model.name = "echo"

    async def generated(key: str) -> str:
        under_way = client.stub.Generate(request, metadata=bearer(key))
        [each async for each in under_way]
        return str(dict(await under_way.trailing_metadata())["worldtree-cache"])

    assert [await generated(key) for key in (one, one, two, two, keys.add("acme"))] == [
        *("miss", "hit", "miss", "hit", "hit")
    ]
    assert client.backend.calls["Generate"] == 2


# ---- the audit log


def audited(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    names = ("tenant", "key", "role", "method", "session", "opened", "outcome", "reason", "peer")
    return [
        {name: getattr(record, name) for name in names if hasattr(record, name)}
        for record in caplog.records
        if record.name == "worldtree_gateway.audit"
    ]


async def test_the_audit_log_says_who_did_what_on_which_session_and_how_it_ended(
    guarded: Any, keys: KeysFile, caplog: pytest.LogCaptureFixture
) -> None:
    client, key = await guarded(log_level="error"), keys.add("acme")
    metadata = bearer(key)
    opened = (await client.stub.CreateSession(pb.CreateSessionRequest(), metadata=metadata)).session.session
    await client.stub.Step(pb.StepRequest(session=opened), metadata=metadata)
    failing = pb.StepRequest(session=opened, actions=[pb.Action(instruction="busy")])
    await refused(client.stub.Step(failing, metadata=metadata))
    [each async for each in client.stub.Rollout(pb.RolloutRequest(session=opened), metadata=metadata)]
    play = client.stub.Play(metadata=metadata)
    await play.write(pb.PlayRequest(session=opened, begin=pb.PlayRequest.Begin()))
    await play.done_writing()
    [each async for each in play]
    await refused(client.stub.Introspect(pb.IntrospectRequest(), metadata=metadata))
    await refused(client.stub.Get(pb.GetRequest(session=opened)))
    hanging = client.stub.Step(
        pb.StepRequest(session=opened, actions=[pb.Action(instruction="hold")]), metadata=metadata
    )
    await client.backend.begun["Step"].wait()
    await asyncio.sleep(0.1)
    hanging.cancel()
    await client.until(lambda: len(audited(caplog)) == 8)
    entries = audited(caplog)
    assert all(entry.pop("peer").startswith("ipv4:127.0.0.1:") for entry in entries)
    who = {"tenant": "acme", "key": key[3:11], "role": "user"}
    video = "/worldtree.video.v1.VideoGenerator/"
    assert entries == [
        {**who, "method": f"{video}CreateSession", "opened": [opened], "outcome": "OK"},
        {**who, "method": f"{video}Step", "session": opened, "outcome": "OK"},
        {**who, "method": f"{video}Step", "session": opened, "outcome": "ABORTED"},
        {**who, "method": f"{video}Rollout", "session": opened, "outcome": "OK"},
        {**who, "method": f"{video}Play", "session": opened, "outcome": "OK"},
        {**who, "method": f"{video}Introspect", "outcome": "PERMISSION_DENIED", "reason": "OPERATORS_ONLY"},
        {"method": f"{video}Get", "outcome": "UNAUTHENTICATED", "reason": "CREDENTIALS_MISSING"},
        {**who, "method": f"{video}Step", "session": opened, "outcome": "CANCELLED"},
    ]


@pytest.mark.parametrize(("audit", "count"), [("all", 2), ("refused", 1), ("off", 0)])
async def test_the_audit_log_can_be_made_shorter(
    guarded: Any, keys: KeysFile, caplog: pytest.LogCaptureFixture, audit: str, count: int
) -> None:
    client = await guarded(audit=audit)
    await who(client, bearer(keys.add("acme")))
    await shown(client, ())
    assert len(audited(caplog)) == count
