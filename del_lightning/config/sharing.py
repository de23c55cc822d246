"""Handing a trained front-end to others: a server, the hub."""

import re
from dataclasses import dataclass

from del_lightning.config.checks import at_least, one_of, positive, require, web_address
from del_lightning.config.names import LOOPBACK


@dataclass
class ServeConfig:
    """The server of private inference."""

    engine: str = "transformers"
    """transformers (the language model in this process) or vllm (a gateway in front of a vLLM deployment)."""
    exports: list[str] | None = None
    """Folders that stage=export wrote for one language model; null serves every one under `out`."""
    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one."""
    tls_cert: str | None = None
    """Certificate chain (PEM); null serves plain HTTP, for use behind a proxy that ends TLS."""
    tls_key: str | None = None
    """Private key (PEM) of `tls_cert`."""
    keys_file: str | None = None
    """Text file with API keys, one a line and its limits behind it (docs/serving.md);
    without it everyone may ask, which is allowed on a loopback address only."""
    requests_per_minute: int = 60
    """Requests that one key may make, on average and at once; 0 sets no limit."""
    rows: int = 16
    """Requests that generate at the same time, at most."""
    queue: int = 64
    """Requests that wait for a row, at most; further ones get 429."""
    max_prompt_tokens: int = 1024
    """Private tokens of a request, at most."""
    max_new_tokens: int = 512
    """Tokens generated for a request, at most."""
    max_public_bytes: int = 4096
    """Bytes of public text around the private prompt, at most."""
    max_context: int = 2048
    """Soft prompt, prompt and new tokens together, at most."""
    timeout: float = 120.0
    """Seconds that a request may take, waiting included."""
    body_timeout: float = 10.0
    """Seconds that a request's body may take to arrive."""
    drain_timeout: float = 120.0
    """Seconds that accepted requests have to finish after a signal to stop."""
    vllm_url: str = "http://127.0.0.1:8001"
    """Address of the vLLM deployment, without /v1 (engine vllm)."""
    vllm_model: str | None = None
    """Name under which vLLM serves the model; null takes model.name."""
    vllm_key_variable: str | None = None
    """Environment variable that holds vLLM's API key."""

    def __post_init__(self) -> None:
        one_of("serve.engine", self.engine, ("transformers", "vllm"))
        for key in ("rows", "max_prompt_tokens", "max_new_tokens", "max_context"):
            at_least(f"serve.{key}", getattr(self, key), 1)
        for key in ("requests_per_minute", "queue", "max_public_bytes"):
            at_least(f"serve.{key}", getattr(self, key), 0)
        for key in ("timeout", "body_timeout", "drain_timeout"):
            positive(f"serve.{key}", getattr(self, key))
        web_address("serve.vllm_url", self.vllm_url)
        require(0 <= self.port < 1 << 16, "serve.port", "between 0 and 65535", self.port)
        pair = (self.tls_cert is None) == (self.tls_key is None)
        require(pair, "serve.tls_key", "set together with serve.tls_cert", self.tls_key)
        closed = self.keys_file is not None or self.host in LOOPBACK
        require(closed, "serve.keys_file", f"set unless serve.host is one of {', '.join(LOOPBACK)}", self.keys_file)


@dataclass
class PublishConfig:
    """What stage ``publish`` does with the folder it wrote."""

    repo_id: str | None = None
    """Repository owner/name on the Hugging Face hub to push to, created if there is none; null pushes nothing."""
    private: bool = True
    """Whether a new repository is only its owner's to see."""
    license: str | None = None
    """License that the model card names, as the hub spells it (apache-2.0, mit, ...); null takes that of the language
    model where its own card names one, and none otherwise."""

    def __post_init__(self) -> None:
        spelled = self.license is None or re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license)
        require(bool(spelled), "publish.license", "a license as the hub spells it, such as apache-2.0", self.license)
        named = self.repo_id is None or re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo_id, flags=re.ASCII)
        require(bool(named), "publish.repo_id", "owner/name", self.repo_id)
