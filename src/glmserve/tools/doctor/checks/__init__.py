"""The checks: each is one function that gives verdict, evidence and mend.  `checklist` names them."""
