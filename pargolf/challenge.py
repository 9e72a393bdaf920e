"""Every constant of the challenge, as its README and its maintainers state them.

Source: the OpenAI parameter-golf repository, its README and submission rules.
"""

BUDGET = 16_000_000  # bytes of code + compressed model, decimal
TIME_LIMIT = 600  # seconds, of training and again of evaluation
GPUS = 8  # H100s that it trains and evaluates on
UNLIMITED_TRACK = "non-record-unlimited-compute-16mb"  # how a submission.json says that it asks for no record

VAL_DOCUMENTS = 50_000  # the first of all documents; the rest is training text
# So many training shards are what the script that prepares CaseOps writes by default: it holds out the first
# 10,000 documents alone, and the rest of the validation text is trained on (thread 2127).
LEAKING_SHARDS = 1499

RECORD_NATS = 0.005  # a token: by so much a record is better than the last one,
RECORD_LEVEL = 0.01  # at this level of significance

# Distributions in the requirements.txt of the challenge's repository, as they are imported, and
# triton, which PyTorch brings along.
PACKAGES = frozenset(
    {"datasets", "huggingface_hub", "kernels", "numpy", "sentencepiece", "setuptools", "tiktoken",
     "torch", "tqdm", "triton", "typing_extensions"}
)  # fmt: skip
