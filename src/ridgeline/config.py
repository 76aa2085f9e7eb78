"""Settings, read once at the edge: frozen, composed, strict. The only module that reads environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from ridgeline.errors import ConfigError

BACKENDS = ("cpu", "reference", "torch")
ACTIVATIONS = ("auto", "int8", "int8-row", "bf16", "float32")
KV_FORMATS = ("bf16", "int8", "f32")
ADMISSIONS = ("overcommit", "strict")
PREFIX_SHARING = ("tenant", "all")
WATERMARKS = ("lefthash", "minhash", "selfhash")  # as ops/green.py counts them
POLICIES = ("fcfs", "priority", "mlfq", "fair")
LOG_FORMATS = ("none", "text", "json")
LOG_LEVELS = ("debug", "info", "warn", "error")
POOLINGS = ("last", "mean")
MAX_SECONDS = 1e6  # of any limit of time
_RANGES = {
    "threads": (0, 1024),
    "context": (0, 1 << 24),
    "kv_memory": (0, 1 << 50),
    "step_tokens": (1, 1 << 16),
    "step_ms": (0, 100_000),
    "max_requests": (1, 4096),
    "queue": (0, 1 << 20),
    "packed_cache": (0, 1 << 50),
    "prefix_cache_size": (1, 1 << 50),
}
_LIMITS = {  # of a server
    "port": (0, 65535),
    "payload_limit": (1, 1 << 40),
    "max_input_tokens": (0, 1 << 24),
    "max_best_of": (1, 1024),
    "max_stop_sequences": (0, 1 << 16),
    "max_top_n_tokens": (0, 20),
    "max_client_batch_size": (1, 1 << 20),
}


HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN")


@dataclass(frozen=True)
class CacheConfig:
    """Where downloaded models live, and Hugging Face's token for those that are gated."""

    path: Path
    token: str = field(default="", repr=False)

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> CacheConfig:
        """XDG_CACHE_HOME/ridgeline, else ~/.cache/ridgeline; the token under the names that TGI knows."""
        token = next((env[name].strip() for name in HUB_TOKENS if env.get(name)), "")
        base = env.get("XDG_CACHE_HOME", "")
        if os.path.isabs(base):  # the XDG specification: relative values are ignored
            return cls(Path(base) / "ridgeline", token)
        home = env.get("HOME") or os.path.expanduser("~")
        return cls(Path(home) / ".cache" / "ridgeline", token)


@dataclass(frozen=True)
class EngineConfig:
    """How a model is loaded and stepped.

    activations: the rows of linears. "auto": int8 over 4- and 8-bit weights, in groups like theirs, and bf16 over bf16
    weights (approximate, its cost shown by `ridgeline eval --against-activations float32`); "int8" and "bf16":
    only the one or the other; "int8-row": int8, with one scale a row over per-channel weights, which costs much
    unless smoothed; "float32" keeps them exact. context 0 = the model's own limit.
    format: what weights are packed anew in, such as "int8" or "int4,head=int8"; "" = as stored (approximate).
    smoothing: strength of SmoothQuant's folding, for per-channel int8 weights; 0 = none, 0.5 is usual. sparsity: the
    part of what linears read that becomes 0, smallest values first; 0 = none (approximate). calibration: the text that
    both are calibrated on, "" = one of ours.
    kv_memory: bytes of the KV pool; 0 = a quarter of the available memory, at most what max_requests could use.
    threads: 0 = one for each physical core that this process may use; `pin` keeps each of them to one.
    step_tokens: most tokens in one step. step_ms: about how long a step may take that reads prompts while others are
    answered; 0 = any time. policy: who goes first (engine/policies.py). admission: "overcommit" starts requests whose
    prompt fits, and computes one again if pages run short; "strict" books each one's worst case. prefix_sharing: what
    requests have in common is computed once for each "tenant", or once for "all", who then could tell by the time it
    takes what others have sent.
    prefix_cache_file: where the prefix cache is kept between runs, in at most prefix_cache_size bytes; "" = nowhere. It
    holds what was computed of prompts, and their tokens.
    seed: of `random:` models, whose format is q4_1 unless given.
    packed_cache: bytes of packed weights kept on disk, the longest unused go first; 0 = none are kept or read.
    device: where backend torch runs: "cpu", "cuda" or "cuda:1".
    log_json: whether what an engine's own process logs are lines of JSON.
    """

    model: str
    backend: str = "cpu"
    activations: str = "auto"
    kv_format: str = "bf16"
    threads: int = 0
    pin: bool = False
    isa: str = ""
    context: int = 0
    kv_memory: int = 0
    step_tokens: int = 256
    step_ms: int = 100
    max_requests: int = 32
    queue: int = 512
    admission: str = "overcommit"
    policy: str = "fcfs"
    prefix_sharing: str = "tenant"
    prefix_cache_file: str = ""
    prefix_cache_size: int = 1 << 30
    format: str = ""
    smoothing: float = 0.0
    sparsity: float = 0.0
    calibration: str = ""
    seed: int = 0
    packed_cache: int = 20 << 30
    device: str = "cpu"
    log_json: bool = False

    def __post_init__(self) -> None:
        for f in fields(self):
            if type(getattr(self, f.name)).__name__ != f.type:
                raise ConfigError(f"{f.name} must be {f.type}, is {getattr(self, f.name)!r}")
        _one_of("backend", self.backend, BACKENDS)
        _one_of("activations", self.activations, ACTIVATIONS)
        _one_of("kv_format", self.kv_format, KV_FORMATS)
        _one_of("policy", self.policy, POLICIES)
        _one_of("prefix_sharing", self.prefix_sharing, PREFIX_SHARING)
        _one_of("admission", self.admission, ADMISSIONS)
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most:
                automatic = " (0 = automatic)" if name in ("threads", "context", "kv_memory") else ""
                raise ConfigError(f"{name} must be {least}{automatic} to {most}, is {value}")
        if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", self.device, re.ASCII):
            raise ConfigError(f"device {self.device!r} is not known; choose cpu, cuda, or one such as cuda:1")
        if self.device != "cpu" and self.backend != "torch":
            raise ConfigError(f"device {self.device} is for backend torch; backend {self.backend} runs on the cpu")
        if self.pin and self.backend != "cpu":
            raise ConfigError(f"pin is for backend cpu; the threads of backend {self.backend} are not ours")
        self._check_prefix_cache()
        if not 0 <= self.smoothing <= 1:
            raise ConfigError(f"smoothing must be 0 (none) to 1, is {self.smoothing}")
        if self.smoothing and "int8" not in re.split("[,=]", self.format):
            raise ConfigError("smoothing is for per-channel int8 weights; give --format int8 with it")
        if not 0 <= self.sparsity < 1:
            raise ConfigError(f"sparsity must be 0 (none) or more, below 1, is {self.sparsity}")
        if self.sparsity and self.smoothing:
            raise ConfigError("sparsity and smoothing do not go together; set only one of them")
        if self.calibration and not (self.smoothing or self.sparsity):
            raise ConfigError("a calibration text is for smoothing or sparsity; give one of them with it")
        if self.smoothing and self.activations in ("float32", "bf16"):
            raise ConfigError(f"smoothing makes int8 rows finer; it does nothing for activations {self.activations}")

    def _check_prefix_cache(self) -> None:
        if self.prefix_cache_file and self.backend != "cpu":
            raise ConfigError(f"prefix_cache_file is for backend cpu; backend {self.backend} keeps no pages")
        if not self.prefix_cache_file and self.prefix_cache_size != EngineConfig.prefix_cache_size:
            raise ConfigError("prefix_cache_size bounds the prefix_cache_file; give one with it")


@dataclass(frozen=True)
class AccessConfig:
    """Who may use the server.

    api_keys: a file of keys (`ridgeline keys`); api_key: one more, which may do all. open: listen beyond this machine
    without keys. allowed_hosts: what the Host header may say; without keys always this machine. cors_allow_origin:
    origins whose pages may ask; "*" in either: any. tls_cert and tls_key: files in PEM.
    """

    api_keys: str = ""
    api_key: str = ""
    open: bool = False
    allowed_hosts: tuple[str, ...] = ()
    cors_allow_origin: tuple[str, ...] = ()
    tls_cert: str = ""
    tls_key: str = ""

    def __post_init__(self) -> None:
        if self.tls_key and not self.tls_cert:
            raise ConfigError("a tls_key needs its certificate; give tls_cert with it")
        for origin in self.cors_allow_origin:
            if origin != "*" and not re.fullmatch(r"https?://[^/\sA-Z]+", origin):
                raise ConfigError(
                    f"cors_allow_origin is such as https://example.org, in lower case, without a path, not {origin!r}"
                )
        for host in self.allowed_hosts:
            if not re.fullmatch(r"\*|[A-Za-z0-9._-]+|\[?[0-9A-Fa-f:.]+\]?", host):
                raise ConfigError(f"allowed_hosts are such as llm.example.org, without a port, not {host!r}")


@dataclass(frozen=True)
class ServerConfig:
    """Where the server listens and what it allows per request; limits that TGI has too are called what it calls them.

    payload_limit: bytes of a request's body. max_input_tokens: 0 = all that the context holds but one.
    max_client_batch_size: prompts, or instances, of one request. max_best_of bounds `n` too. tgi_strict: what TGI does
    otherwise than its clients expect is done as TGI does it. disable_grammar_support: what needs a grammar is refused.
    predict_route and health_route: where Vertex AI expects
    `/vertex` and `/health`; "" = only there.
    max_undelivered: about the bytes of an answer that may wait for its reader; then the request is paused, and after
    max_pause seconds of that it ends. max_wait and max_time: seconds until a request's first token and until its end;
    0 = any time. drain_timeout: seconds that running answers have when the server is told to end. watermark_gamma of
    all tokens are green where an answer is marked, and gain watermark_delta. strict: OpenAI's routes refuse fields that
    they would ignore. trust_request_chat_template: a chat request may bring a template of its own. pooling: what an
    embedding is made of, the hidden states of all tokens ("mean") or of the last one; "": as the model's files say.
    """

    engine: EngineConfig
    hostname: str = "127.0.0.1"
    port: int = 3000
    payload_limit: int = 2_000_000
    max_input_tokens: int = 0
    max_best_of: int = 16
    max_stop_sequences: int = 16
    max_top_n_tokens: int = 20
    max_client_batch_size: int = 128
    tgi_strict: bool = False
    disable_grammar_support: bool = False
    predict_route: str = ""
    health_route: str = ""
    max_undelivered: int = 64 << 10
    max_pause: float = 60.0
    max_wait: float = 0.0
    max_time: float = 0.0
    aliases: tuple[str, ...] = field(default=())
    watermark_scheme: str = "lefthash"
    watermark_gamma: float = 0.5
    watermark_delta: float = 2.0
    strict: bool = False
    trust_request_chat_template: bool = False
    access: AccessConfig = AccessConfig()
    drain_timeout: float = 60.0
    log_format: str = "none"
    log_level: str = "info"
    otlp_endpoint: str = ""
    otlp_service_name: str = "ridgeline"
    pooling: str = ""

    def __post_init__(self) -> None:
        _one_of("pooling", self.pooling or POOLINGS[0], POOLINGS)
        _one_of("watermark_scheme", self.watermark_scheme, WATERMARKS)
        if not 0 < self.watermark_gamma < 1:
            raise ConfigError(f"watermark_gamma must be above 0 and below 1, is {self.watermark_gamma:g}")
        if not 0 < self.watermark_delta <= 100:
            raise ConfigError(f"watermark_delta must be above 0 and at most 100, is {self.watermark_delta:g}")
        if self.max_undelivered < 1:
            raise ConfigError(f"max_undelivered must be at least 1 byte, is {self.max_undelivered}")
        _one_of("log_format", self.log_format, LOG_FORMATS)
        _one_of("log_level", self.log_level, LOG_LEVELS)
        if self.otlp_endpoint and not re.fullmatch(r"https?://\S+", self.otlp_endpoint):
            raise ConfigError(f"otlp_endpoint is such as http://localhost:4318, not {self.otlp_endpoint!r}")
        for name, (least, most) in _LIMITS.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ConfigError(f"{name} must be {least} to {most}, is {value}")
        if 0 < (most := self.engine.context) <= self.max_input_tokens:
            raise ConfigError(f"max_input_tokens must be below max_total_tokens, {most}; it is {self.max_input_tokens}")
        for name in ("predict_route", "health_route"):
            if not re.fullmatch(r"(/[\w.~%-]+)*", route := getattr(self, name), re.ASCII):
                raise ConfigError(f"{name} must be a path such as /predict, is {route!r}")
        for name in ("max_pause", "max_wait", "max_time", "drain_timeout"):
            seconds = getattr(self, name)
            if not 0 <= seconds <= MAX_SECONDS or (name == "max_pause" and not seconds):
                raise ConfigError(f"{name} must be 0 (any time) to {MAX_SECONDS:g} seconds, is {seconds:g}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} {value!r} is not known; choose one of {', '.join(allowed)}")


def set_variables(names: Iterable[str], env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Those environment variables of `names` that are set to something."""
    return {name: value for name in names if (value := env.get(name, ""))}


def one_blas_thread() -> None:
    """Ask numpy's BLAS for one thread, unless the user asked for another number: starting its own takes longer than
    all it computes beside the cpu backend, and they would spin on that backend's cores. Before numpy is imported."""
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, os.environ.get("OMP_NUM_THREADS", "1"))


def one_text_thread() -> None:
    """Ask for one thread each in the pools of tokenizers and of llguidance, here and in child processes: the cores are
    the engine's. Before they are first used."""
    for name, value in {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}.items():
        os.environ.setdefault(name, value)
