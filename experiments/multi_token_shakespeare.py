"""shakespeare_char with modules that predict the three characters behind the next one.

    lm train experiments/multi_token_shakespeare.py
"""
from dataclasses import fields, replace

from experiments import shakespeare_char
from lm import train
from lm.models import MultiTokenDecoder


def config():
    settings = shakespeare_char.config()
    trunk = {field.name: getattr(settings.model, field.name) for field in fields(settings.model)}
    return replace(settings, model=MultiTokenDecoder(**trunk, ahead=3), objective=train.MultiToken())
