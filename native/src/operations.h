/* All operations of a target for one SIZE of element. */
#include WORDS

#include "expand.h"
#include "compress.h"
#include "scan.h"

/* No element that is split has 8 bytes. */
#if SIZE <= 4
#include "split.h"
#endif
