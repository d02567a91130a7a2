// How threads wait for each other.
#pragma once

namespace microgpt {

// OpenMP's threads wait by spinning, which is right on a machine of one's own. On a busy one they spin away the time
// that the thread they wait for needs: steps get ten times slower. So they shall sleep, unless the user has set
// OMP_WAIT_POLICY or GOMP_SPINCOUNT. The OpenMP library reads these when it is loaded: the program starts itself anew.
void let_waiting_threads_sleep(char** argv);

}  // namespace microgpt
