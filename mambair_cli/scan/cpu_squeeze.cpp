// Channel attention in two passes over a map: the sums of its channels, and the map times a factor for each channel,
// added to a residual. Compiled once per instruction set; see CMakeLists.txt.
#include "cpu_kernel.hpp"
#include "rows.hpp"

namespace MAMBAIR_ISA {

void sum_rows(const float* x, int64_t rows, int channels, float* sums) {
  each_vector(channels, [&](int c, int lanes) {
    vf total[4] = {};
    const float* at = x + c;
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4)
      for (int j = 0; j < 4; j++, at += channels) total[j] += load(at, lanes);
    for (; i < rows; i++, at += channels) total[0] += load(at, lanes);
    store(sums + c, (total[0] + total[1]) + (total[2] + total[3]), lanes);
  });
}

void weigh(const Weighed& w, const float* factor, int64_t begin, int64_t end) {
  for (int64_t at = begin * w.channels; at < end * w.channels; at += w.channels)
    each_vector(w.channels, [&](int c, int lanes) {
      const vf residual = load(w.scale + c, lanes) * load(w.residual + at + c, lanes);
      store(w.y + at + c, residual + load(factor + c, lanes) * load(w.x + at + c, lanes), lanes);
    });
}

}  // namespace MAMBAIR_ISA
