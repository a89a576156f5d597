"""Examples of what has the shape of OpenAI's interface."""

from typing import Any

from services.gateway import examples

EMBEDDING_REQUESTS: dict[str, Any] = {
    "texts": {
        "summary": "Two texts",
        "value": {"model": "all-minilm-l6-v2", "input": ["A dog in the snow", "Rain all day"]},
    },
    "picture": {
        "summary": "A picture that was uploaded, as base64",
        "value": {
            "model": "mobilenet_v2",
            "input": [{"image": "file-01k9w0c3v8e6m5j2k1x7r4t9qz"}],
            "encoding_format": "base64",
        },
    },
}

EMBEDDINGS: dict[str, Any] = {
    "object": "list",
    "data": [
        {"object": "embedding", "index": 0, "embedding": [0.01, -0.2]},
        {"object": "embedding", "index": 1, "embedding": [0.03, 0.1]},
    ],
    "model": "all-minilm-l6-v2",
    "usage": {"prompt_tokens": 12, "total_tokens": 12},
}

BATCH_REQUESTS: dict[str, Any] = {
    "embeddings": {
        "summary": "A file of requests to /v1/embeddings",
        "value": {
            "input_file_id": "file-01k9w0c3v8e6m5j2k1x7r4t9qz",
            "endpoint": "/v1/embeddings",
            "completion_window": "24h",
            "metadata": {"project": "posts"},
        },
    },
    "chat": {
        "summary": "A file of requests to /v1/chat/completions, to be answered within a week",
        "value": {
            "input_file_id": "file-01k9w0c3v8e6m5j2k1x7r4t9qz",
            "endpoint": "/v1/chat/completions",
            "completion_window": "168h",
        },
    },
}

BATCH: dict[str, Any] = {
    "id": "batch-01k9w0c5h2m7v4x8r1t6q3z9ny",
    "object": "batch",
    "endpoint": "/v1/embeddings",
    "model": "all-minilm-l6-v2",
    "errors": None,
    "input_file_id": "file-01k9w0c3v8e6m5j2k1x7r4t9qz",
    "completion_window": "24h",
    "status": "completed",
    "output_file_id": "file-01k9w0d4a2b6c8e1f3g5h7j9kq",
    "error_file_id": None,
    "created_at": 1794787200,
    "in_progress_at": 1794787201,
    "expires_at": 1794873600,
    "finalizing_at": 1794787215,
    "completed_at": 1794787217,
    "failed_at": None,
    "expired_at": None,
    "cancelling_at": None,
    "cancelled_at": None,
    "request_counts": {"total": 1200, "completed": 1200, "failed": 0},
    "usage": {
        "input_tokens": 14400,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 14400,
    },
    "metadata": {"project": "posts"},
    "job_id": examples.JOB["id"],
}

FINE_TUNING_REQUESTS: dict[str, Any] = {
    "supervised": {
        "summary": "Two epochs on a file of conversations",
        "value": {
            "model": "gemma3-270m",
            "training_file": "file-01k9w0c3v8e6m5j2k1x7r4t9qz",
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
            "suffix": "posts",
            "seed": 7,
        },
    },
}

_HYPERPARAMETERS = {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": "auto"}

FINE_TUNING_JOB: dict[str, Any] = {
    "id": examples.JOB["id"],
    "object": "fine_tuning.job",
    "model": "gemma3-270m",
    "created_at": 1794787200,
    "finished_at": 1794787515,
    "status": "succeeded",
    "fine_tuned_model": "model-01k9w0e1a4b7c2d5f8g3h6j9km",
    "error": None,
    "hyperparameters": _HYPERPARAMETERS,
    "method": {"type": "supervised", "supervised": {"hyperparameters": _HYPERPARAMETERS}},
    "training_file": "file-01k9w0c3v8e6m5j2k1x7r4t9qz",
    "validation_file": None,
    "result_files": [],
    "seed": 7,
    "trained_tokens": None,
    "estimated_finish": None,
    "organization_id": "default",
    "integrations": [],
    "user_provided_suffix": "posts",
    "metadata": None,
}

FINE_TUNING_EVENT: dict[str, Any] = {
    "id": "ftevent-42",
    "object": "fine_tuning.job.event",
    "created_at": 1794787215,
    "level": "info",
    "message": "Fine-tuning job started",
    "type": "message",
    "data": {"event": "job.running"},
}

FINE_TUNING_CHECKPOINT: dict[str, Any] = {
    "id": "ftckpt-01k9w0e1a4b7c2d5f8g3h6j9km",
    "object": "fine_tuning.job.checkpoint",
    "created_at": 1794787515,
    "fine_tuned_model_checkpoint": "model-01k9w0e1a4b7c2d5f8g3h6j9km",
    "fine_tuning_job_id": examples.JOB["id"],
    "metrics": {"step": 120, "full_valid_loss": 0.41},
    "step_number": 120,
}
