"""A null model behind other servers, each in its own environment, for `benchmarks/serving.py`.

    python benchmarks/null_engine.py litserve|mlserver|rayserve PORT GRPC_PORT

It answers four zeros an image. LitServe takes a file of a form, Ray Serve a raw body, and MLServer
the Open Inference Protocol over gRPC; it has no raw tensors over HTTP.
"""

import asyncio
import logging
import sys
import time
from importlib.util import find_spec
from typing import Any

# Both servers send their model to another process by its name.
if find_spec("litserve"):
    import numpy as np
    from fastapi import Request
    from litserve import LitAPI

    class Form(LitAPI):  # type: ignore[misc]
        """See above."""

        def setup(self, device: str) -> None:
            """Nothing is needed."""

        def decode_request(self, request: Request) -> Any:
            """Images."""
            return np.frombuffer(request["image"].file.read(), np.uint8).reshape(-1, 224, 224, 3)

        def predict(self, images: Any) -> Any:
            """Zeros."""
            return np.zeros((len(images), 4), np.float32)

        def encode_response(self, output: Any) -> Any:
            """As lists."""
            return {"confidence": output.tolist()}


if find_spec("mlserver"):
    from mlserver import MLModel
    from mlserver.codecs import NumpyCodec
    from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

    class Null(MLModel):  # type: ignore[misc]
        """See above."""

        async def load(self) -> bool:
            """Nothing is needed."""
            return True

        async def predict(self, payload: InferenceRequest) -> InferenceResponse:
            """Zeros."""
            count = len(NumpyCodec.decode_input(payload.inputs[0]))
            zeros = ResponseOutput(
                name="confidence", shape=[count, 4], datatype="FP32", data=[0.0] * 4 * count
            )
            return InferenceResponse(model_name=self.name, outputs=[zeros])


def litserve(port: int, grpc_port: int) -> None:
    from litserve import LitServer

    server = LitServer(Form(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, log_level="error", generate_client_file=False)


def rayserve(port: int, grpc_port: int) -> None:
    import numpy as np
    import ray
    from ray import serve

    @serve.deployment
    class Null:
        async def __call__(self, request: Any) -> Any:
            images = np.frombuffer(await request.body(), np.uint8).reshape(-1, 224, 224, 3)
            return {"confidence": np.zeros((len(images), 4), np.float32).tolist()}

    ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.ERROR)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Null.bind(), route_prefix="/predict")  # type: ignore[attr-defined]
    while True:
        time.sleep(1)


def mlserver(port: int, grpc_port: int) -> None:
    from mlserver import MLServer, ModelSettings, Settings

    async def serve() -> None:
        settings = Settings(
            host="127.0.0.1",
            http_port=port,
            grpc_port=grpc_port,
            grpc_max_message_length=64 * 2**20,
            metrics_endpoint=None,
            debug=False,
        )
        model = ModelSettings(name="teacher", implementation="null_engine.Null")
        await MLServer(settings).start([model])

    asyncio.run(serve())


if __name__ == "__main__":
    {"litserve": litserve, "mlserver": mlserver, "rayserve": rayserve}[sys.argv[1]](
        int(sys.argv[2]), int(sys.argv[3])
    )
