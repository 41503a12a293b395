# One command for each duty; CI calls these and nothing else. ARGS goes to the program behind it.
.PHONY: setup demo test check bench lab chaos up down status lock

setup: ; @deploy/setup dev
demo: ; @deploy/setup run && .venv/bin/python -m deploy.demo $(if $(KEEP),--keep) $(ARGS)
test: ; @deploy/setup dev && deploy/test $(ARGS)
check: ; @deploy/setup dev && deploy/check $(ARGS)
bench: ; @deploy/setup dev && .venv/bin/python -m bench $(ARGS)
lab: ; @deploy/setup dev && .venv/bin/python -m pytest -m lab $(ARGS)
chaos: ; @deploy/setup dev && deploy/chaos $(ARGS)
up: ; @deploy/setup run && .venv/bin/python -m deploy.stack up $(HOSTS)
down: ; @.venv/bin/python -m deploy.stack down
status: ; @.venv/bin/python -m deploy.stack status
lock: ; @deploy/setup dev && deploy/lock $(ARGS)
