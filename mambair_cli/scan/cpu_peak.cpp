// What the arithmetic units can do at most: multiply-adds that touch nothing but registers. Compiled once per
// instruction set; see CMakeLists.txt.
#include "cpu_kernel.hpp"
#include "simd.hpp"

namespace MAMBAIR_ISA {

// Runs 12 W multiply-adds `rounds` times, in chains enough to hide what one of them takes; the sum keeps them alive.
float multiply_adds(int64_t rounds) {
  constexpr int CHAINS = 12;
  vf x[CHAINS], scale = splat(0.999f), step = splat(1e-3f);
  for (int i = 0; i < CHAINS; i++) x[i] = splat(float(i));
  for (int64_t r = 0; r < rounds; r++)
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) x[i] = x[i] * scale + step;
  vf total{};
  for (int i = 0; i < CHAINS; i++) total += x[i];
  return sum(total);
}

}  // namespace MAMBAIR_ISA
