// Runs Segment's own node packages for the tests, from a folder of packages outside of the tree.
//
//   node driver.mjs MODULES send URL CALLS FLUSH_AT ENCODING   sends CALLS calls; prints {type: count} of what was
//                                                             delivered, or the first error
//   node driver.mjs MODULES validate                          reads a call a line, prints null or the complaint
//                                                             a line, as JSON
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { gzipSync } from 'node:zlib'

const [modules, mode, ...options] = process.argv.slice(2)
const require = createRequire(join(modules, 'driver.cjs'))

if (mode === 'send') await send(...options)
else await validate()

async function send(url, calls, flushAt, encoding) {
  const { Analytics } = require('@segment/analytics-node')
  const { origin, pathname } = new URL(url)
  const analytics = new Analytics({
    writeKey: 'node',
    host: origin,
    path: pathname,
    flushAt: Number(flushAt),
    maxRetries: 0,
    ...(encoding === 'gzip' && { httpClient: compressing }),
  })
  const delivered = {}
  const errors = []
  analytics.on('error', (error) => errors.push(String(error.reason ?? error.message ?? error.code)))

  const kinds = {
    identify: (user) => ({ userId: user, traits: { plan: 'pro', tags: ['a'] } }),
    track: (user) => ({ anonymousId: user, event: 'Order Completed', properties: { total: 9.5 } }),
    page: (user) => ({ userId: user, anonymousId: `a-${user}`, category: 'Docs', name: 'Home' }),
    screen: (user) => ({ userId: user, name: 'Start', properties: {} }),
    group: (user) => ({ userId: user, groupId: 'acme', traits: { name: 'Ümläut ☃ 𝄞' } }),
    alias: (user) => ({ userId: user, previousId: `a-${user}` }),
  }
  const names = Object.keys(kinds)
  for (let number = 0; number < Number(calls); number++) {
    const kind = names[number % names.length]
    analytics[kind](kinds[kind](`user-${number}`), (error) => {
      if (error) errors.push(String(error))
      else delivered[kind] = (delivered[kind] ?? 0) + 1
    })
  }
  await analytics.closeAndFlush()
  if (errors.length) throw new Error(errors[0])
  console.log(JSON.stringify(delivered))
}

// analytics-node itself sends bodies as they are; its seam for HTTP clients lets the same body travel compressed.
function compressing(url, init) {
  const headers = { ...init.headers, 'Content-Encoding': 'gzip' }
  return fetch(url, { ...init, headers, body: gzipSync(init.body) })
}

async function validate() {
  const looselyValidateEvent = require('@segment/loosely-validate-event')
  for await (const line of createInterface({ input: process.stdin })) {
    const call = JSON.parse(line)
    // JSON has no dates: the senders hold one here, and the validator looks at it before it becomes text.
    if (typeof call?.timestamp === 'string') call.timestamp = new Date(call.timestamp)
    let complaint = null
    try {
      looselyValidateEvent(call)
    } catch (error) {
      complaint = error.message
    }
    console.log(JSON.stringify(complaint))
  }
}
