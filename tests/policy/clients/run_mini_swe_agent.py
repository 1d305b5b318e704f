"""mini-swe-agent as it comes, with its own litellm clients: prints how its run ended.

python run_mini_swe_agent.py BASE_URL MODEL_CLASS
"""

from __future__ import annotations

import json
import os
import sys

os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "MSWEA_SILENT_STARTUP": "1"}
os.environ["MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT"] = "1"

from minisweagent.agents.default import DefaultAgent
from minisweagent.config import get_config_from_spec
from minisweagent.environments.local import LocalEnvironment
from minisweagent.models import get_model_class


def main() -> None:
    base_url, kind = sys.argv[1:3]
    config = get_config_from_spec("mini_textbased" if kind == "litellm_textbased" else "mini")
    model = get_model_class("", kind)(
        **{
            **config["model"],
            "model_name": "openai/policy",
            "cost_tracking": "ignore_errors",
            "model_kwargs": {"api_base": base_url, "api_key": "none", "drop_params": True},
        }
    )
    settings = {
        k: v for k, v in config["agent"].items() if k in ("system_template", "instance_template")
    }
    agent = DefaultAgent(model, LocalEnvironment(), **settings)
    try:
        info = agent.run("say hi")
    except Exception as error:  # what this client makes of the gateway's refusal
        info = {"exit_status": type(error).__name__, "why": str(error)}
    print(json.dumps({**{k: info.get(k) for k in ("exit_status", "why")}, "calls": agent.n_calls}))


if __name__ == "__main__":
    main()
