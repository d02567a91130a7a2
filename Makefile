# Every command sets itself up: system packages (as root), .venv, build. The logic is in scripts/.
.DEFAULT_GOAL := help
.PHONY: help demo generate vision test bench report docs links asan wheel release-check format lint clean

help:    ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
demo:    ## train a small GPT on real text for about two minutes
	@scripts/demo.sh $(ARGS)
generate: ## write text with the model that demo left, from a cache of keys and values
	@scripts/generate.sh $(ARGS)
vision:  ## train a Poolformer on Fashion-MNIST for an epoch, or on other images where it can not be had
	@scripts/vision.sh $(ARGS)
test:    ## build everything and run all tests
	@scripts/test.sh
bench:   ## attention and the operators around it against PyTorch's, JSON in build/bench
	@scripts/bench.sh $(ARGS)
report:  ## all benchmarks, also the Python ones, as one page beside stored results (ARGS="--names mlp swiglu")
	@scripts/report.sh $(ARGS)
docs:    ## the documentation as a site in build/docs/html; warnings are errors
	@scripts/docs.sh
links:   ## list the links of the documentation that lead outside, and ask whether they are there
	@scripts/docs.sh --links
asan:    ## the C++ tests under AddressSanitizer and UBSan
	@scripts/asan.sh
wheel:   ## build the Python wheel into build/dist (CUDA=1: with the CUDA kernels)
	@CUDA=$(CUDA) scripts/wheel.sh
release-check: ## all that a release must pass without a GPU, with a table (ARGS="lint dist": parts of it)
	@scripts/release/check.sh $(ARGS)
format:  ## rewrite the sources in the house format
	@scripts/format.sh
lint:    ## check format, style, types and scripts, change nothing
	@scripts/format.sh --check
clean:   ## remove build/, keep .venv
	rm -rf build
