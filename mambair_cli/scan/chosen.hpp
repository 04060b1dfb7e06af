// The kernels of the instruction set that this machine can run best, or of another that was asked for.
#pragma once
#include <string>
#include <vector>

#include "cpu_kernel.hpp"
#include "processor.hpp"

inline std::vector<const Kernels*> available() {
  std::vector<const Kernels*> found;
#if defined(MAMBAIR_X86)
  const Features can = processor_features();
  if (can.avx512) found.push_back(&avx512::kernels);
  if (can.avx2) found.push_back(&avx2::kernels);
#endif
  found.push_back(&portable::kernels);
  return found;
}

inline const Kernels* chosen = available().front();

// False where this machine cannot run it.
inline bool choose(const std::string& name) {
  for (const Kernels* k : available())
    if (name == k->name) {
      chosen = k;
      return true;
    }
  return false;
}
