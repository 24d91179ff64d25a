from setuptools import find_namespace_packages, setup

CORE = [
    'jax>=0.10',
    'flax>=0.12',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12',
    'tensorflow-datasets>=4.9.9',
    'importlib_resources',
    'grain>=0.2.15',
    'sentencepiece>=0.2',
    'absl-py',
    'numpy>=2',
    'scipy',
    'rich',
    'tensorboardX',
    'safetensors',
]
EXTRAS = {
    'cuda': ['jax[cuda13]'],
    'cuda12': ['jax[cuda12]'],
    'tpu': ['jax[tpu]'],
    'plan-tpu': ['libtpu'],
    'plan-cuda': ['jax-cuda13-plugin', 'jax-cuda13-pjrt', 'nvidia-cuda-nvcc', 'nvidia-nvvm', 'nvidia-cudnn-cu13'],
    'hf': ['tokenizers'],
    # what conversions are compared with, in an environment of its own (.ci/run)
    'peers': ['torch==2.13.0', 'transformers>=5,<6', 'gensim>=4.4'],
    'parquet': ['pyarrow'],
    'zstd': ['zstandard'],
    'quant': ['qwix>=0.1.8,<0.2'],
    'optuna': ['optuna>=4'],
    'bleu': ['sacrebleu'],
    'cloud': ['fsspec', 'gcsfs', 's3fs'],
}
EXTRAS['test'] = ['pytest', 'hypothesis', 'pytest-xdist', 'ruff', 'statsmodels', 'fsspec', 'kubeflow-trainer-api',
                  'gguf', *EXTRAS['hf'], *EXTRAS['parquet'], *EXTRAS['zstd'], *EXTRAS['quant'],
                  *EXTRAS['optuna'], *EXTRAS['bleu']]

setup(
    name='lm',
    version='0.1.0',
    description='The lab bench for language-model research in JAX',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=find_namespace_packages(include=['lm', 'lm.*']),
    package_data={'lm.pages': ['page.*', 'uplot/*']},
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={'console_scripts': ['lm=lm.__main__:main']},
)
