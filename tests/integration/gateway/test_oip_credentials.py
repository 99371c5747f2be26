"""Who speaks the inference protocol is let in as everybody is, and its sequences are its tenant's."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from credentials import Authority, KeysFile
from inference_servers import Servers, actions, given, until
from tritonclient.utils import InferenceServerException


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("oip"))
    yield servers
    servers.close()


@pytest.fixture
def keys(tmp_path: Path) -> KeysFile:
    return KeysFile(tmp_path / "keys")


def headers(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(InferenceServerException) as caught:
        call()
    return str(caught.value.status()).removeprefix("StatusCode.")


def test_nobody_without_a_key_learns_or_infers_anything(servers: Servers, keys: KeysFile) -> None:
    gateway = servers.gateway(keys_file=keys.path)
    with triton.InferenceServerClient(gateway.server.address) as client:
        assert client.is_server_live()  # which whoever watches over a server asks
        assert client.is_server_ready()
        for call in (
            client.get_server_metadata,
            client.get_model_repository_index,
            client.get_inference_statistics,
            lambda: client.get_model_metadata("tiny"),
            lambda: client.infer("tiny", [actions(0)]),
        ):
            assert refusal(call) == "UNAUTHENTICATED"
        told: list[Any] = []
        client.start_stream(lambda result, error: told.append(error or result))
        until(lambda: told)
        client.stop_stream()
        assert told[0].status() == "StatusCode.UNAUTHENTICATED"


def test_a_key_lets_in_and_goes_along_with_all_that_is_done_for_it(servers: Servers, keys: KeysFile) -> None:
    key = headers(keys.add("acme"))
    gateway = servers.gateway(keys_file=keys.path)
    with triton.InferenceServerClient(gateway.server.address) as client:
        assert client.is_server_live(headers=key)
        assert client.is_model_ready("tiny", headers=key)
        assert len(client.get_model_repository_index(headers=key).models) == 5
        assert client.infer("tiny", [actions(0, 1)], headers=key).as_numpy("frames").shape == (2, 4, 6, 3)
        image = given("image", np.zeros((8, 8, 3), np.uint8), "UINT8")
        assert client.infer("tiny-experts", [image], headers=key).as_numpy("hue").shape == (3,)
        client.infer("tiny", [actions(0)], sequence_id=1, sequence_start=True, headers=key)
        assert servers.session_count() == 1
        client.infer("tiny", [], sequence_id=1, sequence_end=True, headers=key)
    servers.no_session_is_left()


def test_one_tenant_s_sequences_are_not_another_s(servers: Servers, keys: KeysFile) -> None:
    acme, other, also_acme = (headers(keys.add(tenant)) for tenant in ("acme", "umbrella", "acme"))
    gateway = servers.gateway(keys_file=keys.path)
    with triton.InferenceServerClient(gateway.server.address) as client:
        client.infer("tiny", [actions(0)], sequence_id=1, sequence_start=True, headers=acme)
        assert (
            refusal(lambda: client.infer("tiny", [actions(0)], sequence_id=1, headers=other)) == "FAILED_PRECONDITION"
        )
        client.infer("tiny", [actions(1, 1)], sequence_id=1, sequence_start=True, headers=other)
        assert servers.session_count() == 2
        for key, index in ((also_acme, 1), (other, 2)):
            answer = client.infer("tiny", [actions(0)], sequence_id=1, sequence_end=True, headers=key)
            assert answer.as_numpy("chunk_index").tolist() == [index]
    servers.no_session_is_left()


def test_a_sequence_that_nobody_ends_is_given_up_in_the_name_of_who_began_it(servers: Servers, keys: KeysFile) -> None:
    key = headers(keys.add("acme"))
    gateway = servers.gateway(keys_file=keys.path, oip_sequence_idle_s=0.3)
    with triton.InferenceServerClient(gateway.server.address) as client:
        client.infer("tiny", [actions(0)], sequence_id=1, sequence_start=True, headers=key)
        servers.no_session_is_left()


def test_the_protocol_is_encrypted_where_the_gateway_is(servers: Servers, keys: KeysFile, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair, key = authority.issue("server"), headers(keys.add("acme"))
    gateway = servers.gateway(keys_file=keys.path, tls_cert_file=pair.chain, tls_key_file=pair.key)
    address = f"localhost:{gateway.server.address.rpartition(':')[2]}"
    with triton.InferenceServerClient(address, ssl=True, root_certificates=str(authority.path)) as client:
        assert client.infer("tiny", [actions(0)], headers=key).as_numpy("frames").shape == (1, 4, 6, 3)
        client.infer("tiny", [actions(0)], sequence_id=1, sequence_start=True, sequence_end=True, headers=key)
    servers.no_session_is_left()
