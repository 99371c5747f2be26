"""`python -m worldtree_gateway.key_tool`: makes one API key, for `worldtree keys create`. Answers in JSON on stdout."""

import argparse
import json

from worldtree_gateway.api_key import new_key
from worldtree_gateway.identity import Role


def main() -> None:
    """Prints `key` (which nobody will see again), `key_id` and `line`; or `error`, and ends with code 1."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--tenant", required=True)
    parser.add_argument("--role", required=True, choices=[role.name.lower() for role in Role])
    asked = parser.parse_args()
    try:
        key, known = new_key(asked.tenant, Role[asked.role.upper()])
    except ValueError as error:
        print(json.dumps({"error": str(error)}))
        raise SystemExit(1) from None
    print(json.dumps({"key": key, "key_id": known.key_id, "line": known.line}))


if __name__ == "__main__":
    main()
