"""sbom.py <folder of wheels>   their CycloneDX bill of materials: what is inside, as THIRD_PARTY.md lists it."""

import hashlib
import json
import re
import sys
import uuid
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion

ROOT = Path(__file__).parents[2]


def third_parties():
    """(name, where, licence) of the rows of the table in THIRD_PARTY.md."""
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", (ROOT / "THIRD_PARTY.md").read_text(), re.MULTILINE)
    return rows[1:]


def version():
    text = (ROOT / "python/xformers/version.py").read_text()
    return re.search(r'^__version__ = "(.+)"', text, re.MULTILINE).group(1)


def bill(folder):
    files = sorted(folder.glob("*.whl"))
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(digests)))
    bom.metadata.component = Component(
        name="xformers", version=version(), type=ComponentType.LIBRARY, licenses=[DisjunctiveLicense(id="BSD-3-Clause")]
    )
    for name, digest in digests.items():
        hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest)]
        bom.components.add(Component(name=name, type=ComponentType.FILE, hashes=hashes))
    for name, where, licence in third_parties():
        component = Component(name=name, type=ComponentType.LIBRARY, description=re.sub("`", "", where))
        component.licenses.add(DisjunctiveLicense(name=licence))
        bom.components.add(component)
        bom.register_dependency(bom.metadata.component, [component])
    return make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2)


if __name__ == "__main__":
    print(bill(Path(sys.argv[1])))
