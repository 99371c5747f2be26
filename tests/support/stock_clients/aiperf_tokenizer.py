"""A tokenizer of two words for AIPerf, which wants one whatever it measures, and would fetch it from elsewhere.

PYTHON aiperf_tokenizer.py FOLDER
"""

import sys

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1}, unk_token="[UNK]"))
special = dict.fromkeys(("pad_token", "bos_token", "eos_token"), "[PAD]")
PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", **special).save_pretrained(sys.argv[1])
