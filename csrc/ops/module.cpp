// The extension module llmcli._C: build facts, CPU features, and the choice of instruction set. Tensor
// operators register themselves with torch's dispatcher when this library loads; they are not here.
#include <pybind11/pybind11.h>
#include <torch/headeronly/version.h>

#include <string>

#include "../cpu/features.h"
#include "../cpu/kernels.h"

namespace py = pybind11;

namespace {

py::list available() {
  int count = 0;
  const llmcli::cpu::Kernels* const* tables = llmcli::cpu::available(&count);
  py::list names;
  for (int i = 0; i < count; ++i) names.append(tables[i]->isa);
  return names;
}

void set_isa(const std::string& name) {
  if (!llmcli::cpu::activate(name.c_str()))
    throw py::value_error("instruction set '" + name + "' is not available on this CPU; available: " +
                          py::str(", ").attr("join")(available()).cast<std::string>());
}

py::dict features() {
  const llmcli::cpu::Features& f = llmcli::cpu::features();
  py::dict d;
  d["avx2"] = f.avx2;
  d["avx512"] = f.avx512;
  d["avx512_bf16"] = f.avx512_bf16;
  d["avx512_vnni"] = f.avx512_vnni;
  d["amx"] = f.amx;
  d["neon"] = f.neon;
  return d;
}

py::dict build_info() {
  py::dict d;
  d["torch"] = TORCH_VERSION;
  d["stable_abi"] = "2.11";
#if defined(__clang__)
  d["compiler"] = std::string("clang ") + __clang_version__;
#else
  d["compiler"] = std::string("gcc ") + __VERSION__;
#endif
#if defined(LLMCLI_CUDA)
  d["cuda"] = true;
#else
  d["cuda"] = false;
#endif
  return d;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Host-side facts and controls of llmcli's kernels.";
  m.def("build_info", &build_info, "Compiler, torch headers and parts this binary was built with.");
  m.def("features", &features, "What this CPU can do.");
  m.def("isa", [] { return llmcli::cpu::active().isa; }, "The instruction set in use.");
  m.def("available_isas", &available,
        "Instruction sets that this binary holds and this CPU runs, best first.");
  m.def("set_isa", &set_isa, py::arg("name"),
        "Use another instruction set; ValueError when it is not available.");
}
