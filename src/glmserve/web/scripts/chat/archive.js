// Keeps conversations in this browser (IndexedDB).  They never leave it, but for what is sent as a prompt.

const NAME = "glmserve";
const STORE = "conversations";

/** Opens the archive; one in memory, with `lasting` false, where the browser lets the page store nothing. */
export async function openArchive() {
  try {
    return new Archive(await open());
  } catch {
    return new MemoryArchive();
  }
}

class Archive {
  lasting = true;
  #database;

  constructor(database) {
    this.#database = database;
  }

  /** All conversations, newest first. */
  async all() {
    const kept = await this.#run("readonly", (store) => store.getAll());
    return kept.sort((a, b) => b.changedAt - a.changedAt);
  }

  /** Keep a conversation as it is now. */
  async put(conversation) {
    await this.#run("readwrite", (store) => store.put(conversation));
  }

  /** Forget a conversation. */
  async remove(id) {
    await this.#run("readwrite", (store) => store.delete(id));
  }

  #run(mode, act) {
    return new Promise((resolve, reject) => {
      const transaction = this.#database.transaction(STORE, mode);
      const request = act(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  }
}

class MemoryArchive {
  lasting = false;

  async all() {
    return [];
  }

  async put() {}

  async remove() {}
}

function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
