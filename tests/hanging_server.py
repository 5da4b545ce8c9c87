"""A server in a process of its own whose teacher hangs on some images: python FILE DRAIN_S."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from live import echo_teacher

from distill.hierarchy.semantic import SemanticHierarchy
from distill.targets.encoding import EncodingSpec
from distill.teacher_server.front.server import make_server, run
from distill.teacher_server.http.json_log import json_log
from distill.teacher_server.http.listener import Address
from distill.teacher_server.serve.admission import Budgets
from distill.teacher_server.serve.service import ServeOptions, Service

if __name__ == "__main__":
    teacher = echo_teacher(SemanticHierarchy.bundled("plane-figures"))
    spec = EncodingSpec.named("standard", teacher.hierarchy.classes_per_hierarchy)
    budgets = Budgets(images=64, bytes=2**20, requests=8)
    options = ServeOptions(encoding=spec, max_batch_size=8, budgets=budgets)
    service = Service([teacher], options, journal=json_log())
    address = Address(port=0)
    run(make_server(service, None, address), service, address.bound(), float(sys.argv[1]))
