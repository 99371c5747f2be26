"""KServe's own clients, unchanged, in an environment of their own: what they see of a gateway, as one JSON line.

PYTHON kserve_client.py GRPC_ADDRESS HTTP_ADDRESS
"""

import asyncio
import hashlib
import json
import sys
from typing import Any

import numpy as np
from kserve import InferInput, InferRequest, InferResponse
from kserve.inference_client import InferenceGRPCClient, InferenceRESTClient, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

ACTIONS, SEED = [1, 2, 0], 41


def clip(*, binary: bool) -> InferRequest:
    """A clip of the tiny world; `binary`: tensors raw, else as JSON lists or typed contents."""
    tensors = []
    for name, values in (("actions", ACTIONS), ("seed", [SEED])):
        tensors.append(InferInput(name, [len(values)], "INT64"))
        tensors[-1].set_data_from_numpy(np.array(values, np.int64), binary_data=binary)
    wanted = [RequestedOutput(name, {"binary_data": binary}) for name in ("frames", "chunk_index")]
    return InferRequest("tiny", tensors, request_id="seventh", request_outputs=wanted)


def told(answer: InferResponse) -> dict[str, Any]:
    frames = answer.get_output_by_name("frames").as_numpy()
    return {
        "id": answer.id,
        "model": answer.model_name,
        "frames": hashlib.sha256(frames.astype(np.uint8).tobytes()).hexdigest(),
        "chunks": answer.get_output_by_name("chunk_index").as_numpy().tolist(),
    }


async def main(grpc_address: str, http_address: str) -> None:
    seen: dict[str, Any] = {}
    async with InferenceGRPCClient(grpc_address) as client:
        seen["grpc states"] = [
            await client.is_server_live(),
            await client.is_server_ready(),
            await client.is_model_ready("tiny"),
        ]
        for binary in (True, False):
            seen[f"grpc {'raw' if binary else 'typed'}"] = told(await client.infer(clip(binary=binary)))
    url = f"http://{http_address}"
    async with InferenceRESTClient(RESTConfig(protocol="v2", verbose=False)) as client:
        seen["rest states"] = [
            await client.is_server_live(url),
            await client.is_server_ready(url),
            await client.is_model_ready(url, "tiny"),
        ]
        for binary in (True, False):
            answer = await client.infer(url, clip(binary=binary), model_name="tiny")
            seen[f"rest {'binary' if binary else 'json'}"] = told(answer)
        try:
            await client.infer(url, InferRequest("tiny", []), model_name="nobody")
        except Exception as error:
            seen["refused"] = str(error)
    print(json.dumps(seen))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
